"""How results are worded, and as tables of a terminal."""

from collections.abc import Iterator

from rich.table import Table

from vlalign.evals.base import Estimate
from vlalign.evals.results import Results

_SHARES = ("recall", "top", "accuracy")
_KINDS = {"t2i_": "Retrieval", "i2t_": "Retrieval", "top": "Zero-shot classification"}
_WORDS = {
    "mean_per_class_recall": "mean per-class recall",
    "t2i": "text to image",
    "i2t": "image to text",
}


def results_tables(results: Results) -> Iterator[Table]:
    """A rich table for each set of evaluators with the same metrics: metrics down, names across.

    Metrics have the names that evals.json gives them.
    """
    for kind, metrics, names in alike(results):
        table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0))
        for column in (kind, *names):
            table.add_column(column, no_wrap=True)
        for metric in metrics:
            cells = (results[name][metric] for name in names)
            table.add_row(metric, *(_compact(metric, found) for found in cells))
        yield table


def alike(results: Results) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """(kind, metrics, evaluator names) of the evaluators that have the same metrics."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, estimates in results.items():
        groups.setdefault(tuple(estimates), []).append(name)
    for metrics, names in groups.items():
        kinds = (_KINDS[start] for start in _KINDS for m in metrics if m.startswith(start))
        yield next(kinds, "Other"), metrics, names


def head(metric: str) -> str:
    """`t2i_recall@5` -> `text to image recall@5`."""
    if metric in _WORDS:
        return _WORDS[metric]
    first, _, rest = metric.partition("_")
    return " ".join([_WORDS.get(first, first), rest.replace("_", " ")]).strip()


def is_share(metric: str) -> bool:
    """Whether this metric is a share of 1, which is written in per cent."""
    return any(word in metric for word in _SHARES)


def value(metric: str, number: float) -> str:
    """The number as it is read: `41.2 %`, `1,911`, `2.5`."""
    if is_share(metric):
        return f"{100 * number:.1f} %"
    return f"{number:,.1f}".removesuffix(".0")


def interval(metric: str, found: Estimate) -> str:
    """What stands beside the number: `39.0 to 43.4 %`, `of 1,911`, or nothing."""
    if metric == "skipped":
        return f"of {found.count:,}" if found.count else ""
    if found.low == found.high:
        return ""
    low, high = value(metric, found.low), value(metric, found.high)
    return f"{low.removesuffix(' %')} to {high}"


def _compact(metric: str, found: Estimate) -> str:
    aside = interval(metric, found).replace(" to ", "-").removesuffix(" %")
    return f"{value(metric, found.value)}  {aside}".rstrip()
