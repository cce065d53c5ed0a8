import numpy as np
import pytest

from vlalign.evals.base import Estimate, Evaluator, Pictured, checked, remember


def test_an_upside_down_interval_is_refused():
    with pytest.raises(ValueError, match="upside down"):
        Estimate(0.5, 0.6, 0.4, 10)


def test_remember_encodes_an_array_once_a_tower(embed):
    calls = []

    def counted(tower, inputs):
        calls.append(tower)
        return embed(tower, inputs)

    once = remember(counted)
    inputs = np.arange(12, dtype=np.int32).reshape(3, 4)
    first = once("text", inputs)
    assert once("text", inputs) is first
    once("image", inputs)
    once("text", inputs.copy())
    assert calls == ["text", "image", "text"]


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.ones((2, 1)), "not float32"),
        (np.ones((3, 1), np.float32), "not float32"),
        (np.full((2, 2), np.nan, np.float32), "2 of 2 .* not finite"),
        (np.ones((2, 2), np.float32), "unit length"),
    ],
)
def test_embeddings_that_break_the_contract_are_refused(z, message):
    with pytest.raises(ValueError, match=message):
        checked(z, "text", 2)


def test_the_evaluators_keep_the_protocols(fake_run):
    for evaluator in fake_run.experiment.evals.values():
        assert isinstance(evaluator, Evaluator)
    assert isinstance(fake_run.experiment.evals["seen"], Pictured)
    assert not isinstance(fake_run.experiment.evals["shape"], Pictured)
