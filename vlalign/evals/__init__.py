"""Model + data -> numbers and pictures.

An evaluator is one frozen dataclass with `every`, `prepare` and `evaluate` (`base.Evaluator`);
a new one is a new file here, its numpy twin in `tests/evals`, and a line of configuration.
"""
