"""Results as files: evals.json (one run's newest estimates) and metrics.jsonl (all steps)."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlalign.errors import UserError, nearest
from vlalign.evals.base import Embed, Estimate, Evaluator, Tools, remember

Results = dict[str, dict[str, Estimate]]
"""evaluator name -> metric name -> estimate"""


def choose(evals: Mapping[str, Evaluator], only: Iterable[str] | None) -> dict[str, Evaluator]:
    """The evaluators named by `only` (all if it is empty), in the order of the configuration.

    Raises `UserError` with the nearest name for an unknown one.
    """
    wanted = list(only or evals)
    for name in wanted:
        if name not in evals:
            raise UserError(f"this run has no evaluator {name!r}{nearest(name, evals)}")
    return {name: evaluator for name, evaluator in evals.items() if name in wanted}


def evaluate_all(evals: Mapping[str, Evaluator], tools: Tools, embed: Embed) -> Results:
    """One round: each array is embedded once, also when several evaluators use it."""
    embed_once = remember(embed)
    return {
        name: evaluator.evaluate(evaluator.prepare(tools), embed_once)
        for name, evaluator in evals.items()
    }


def flat(results: Results) -> dict[str, float]:
    """The form of metrics.jsonl: `eval/NAME/METRIC`, and with `/low` and `/high` its interval."""
    row = {}
    for name, estimates in results.items():
        for metric, estimate in estimates.items():
            key = f"eval/{name}/{metric}"
            row[key] = estimate.value
            row[f"{key}/low"] = estimate.low
            row[f"{key}/high"] = estimate.high
    return row


def write_results(path: Path, step: int, results: Results) -> None:
    """Writes evals.json atomically; other evaluators' results of the same step stay in it."""
    old_step, old = read_results(path) if path.exists() else (step, {})
    merged = {**(old if old_step == step else {}), **results}
    document = {
        "step": step,
        "evaluators": {
            name: {metric: dataclasses.asdict(found) for metric, found in estimates.items()}
            for name, estimates in merged.items()
        },
    }
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def read_results(path: Path) -> tuple[int, Results]:
    """(step, results) of an evals.json. Raises `UserError` if it is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return int(document["step"]), {
            name: {metric: Estimate(**fields) for metric, fields in estimates.items()}
            for name, estimates in document["evaluators"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path} is not a results file ({error!r}); delete it and run `vlalign eval` again"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, one a step, ascending; of a step written twice the later values.

    A resumed run repeats steps, and a killed one may leave half a last line: that line is dropped.
    Raises `UserError` for a missing file or another broken line.
    """
    if not path.is_file():
        raise UserError(f"no metrics in {path}: is this the directory of a run?")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number} is not a row of metrics: {error!r}") from error
    return [rows[step] for step in sorted(rows)]


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have this key as a number."""
    return [
        (int(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)
    ]


def results_of_metrics(rows: Iterable[Mapping[str, Any]]) -> tuple[int, Results]:
    """(step, results): the newest value of each metric in metrics.jsonl; it has no counts."""
    last: dict[str, float] = {}
    step = 0
    for row in rows:
        found = {
            k: v for k, v in row.items() if k.startswith("eval/") and isinstance(v, int | float)
        }
        step = int(row["step"]) if found else step
        last.update(found)
    results: Results = {}
    for key, value in last.items():
        _, name, *rest = key.split("/")
        if not rest or rest[-1] in ("low", "high"):
            continue
        low, high = last.get(f"{key}/low", value), last.get(f"{key}/high", value)
        results.setdefault(name, {})["/".join(rest)] = Estimate(value, low, high, 0)
    return step, results


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file or none: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if isinstance(content, str):
            draft.write_text(content, encoding="utf-8")
        else:
            draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
