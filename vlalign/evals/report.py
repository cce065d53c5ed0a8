"""The report of a run: one HTML file that needs no network, and no other file beside it."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlalign.errors import UserError
from vlalign.evals import curves, tables
from vlalign.evals.base import Estimate, Pictured, remember
from vlalign.evals.goodput import Goodput, goodput, read_events
from vlalign.evals.html import Html, element, image, join, page, table
from vlalign.evals.pictures import Hit, Sheet, SheetRow
from vlalign.evals.results import (
    Results,
    read_metrics,
    read_results,
    results_of_metrics,
    series,
    write_atomically,
)
from vlalign.evals.run import Run

HEADLINES = ("t2i_recall@5", "t2i_recall@1", "top1")
"""What an evaluator is known by on the first screen: the first of these that it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """All that a report shows.

    title: the run's name; facts: short (name, value) pairs for the first screen
    rows: of metrics.jsonl; results: the newest estimates; step: of the results
    sheets: contact sheets; time: where it went
    config: the configuration as text; versions: name -> version
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    results: Results = dataclasses.field(default_factory=dict)
    step: int = 0
    sheets: Sequence[Sheet] = ()
    time: Goodput | None = None
    config: str = ""
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def report_from_run(run: Run, progress: Callable[[str], None] = lambda text: None) -> Path:
    """Writes `run.path/report.html` from the run's files and its evaluators' pictures.

    progress: is told in words what is being done. Returns the file's path.
    """
    progress("reading metrics")
    rows = read_metrics(run.path / "metrics.jsonl")
    step, results = _newest_results(run.path, rows)
    embed = remember(run.embed)
    sheets: list[Sheet] = []
    for name, evaluator in run.experiment.evals.items():
        if isinstance(evaluator, Pictured):
            progress(f"drawing {name}")
            found = evaluator.pictures(evaluator.prepare(run.tools), embed)
            sheets += [dataclasses.replace(s, title=f"{name}: {s.title}") for s in found]
    content = Content(
        title=run.path.resolve().name,
        facts=[("checkpoint", f"step {run.step:,}"), *_facts(rows)],
        rows=rows,
        results=results,
        step=step,
        sheets=sheets,
        time=goodput(read_events(run.path / "events.jsonl")),
        config=_text(run.path / "config.txt"),
        versions=_json(run.path / "versions.json"),
    )
    path = run.path / "report.html"
    write_report(path, content)
    return path


def write_report(path: Path, content: Content) -> None:
    """Writes the report atomically. Raises `UserError` if a picture in it cannot be read."""
    sections = {
        "Curves": _curves(content.rows),
        "Results": _tables(content.results),
        "Contact sheets": join(_sheet(sheet) for sheet in content.sheets),
        "Time": _time(content.time),
        "Configuration": _configuration(content.config, content.versions),
    }
    filled = {name: body for name, body in sections.items() if body}
    links = [element("a", name, href=f"#{_anchor(name)}") for name in filled]
    head = [
        element("header", element("h1", content.title), _subtitle(content)),
        element("nav", *links, aria_label="Sections"),
        element("div", *_cards(content.results), class_="cards"),
        _fact_list(content.facts),
    ]
    body = [
        element("section", element("h2", name, id=_anchor(name)), inner)
        for name, inner in filled.items()
    ]
    foot = element("footer", "Written by vlalign. Intervals are 95 % bootstrap intervals.")
    write_atomically(path, page(f"{content.title} · vlalign", *head, *body, foot))


def _subtitle(content: Content) -> Html:
    at = f"evaluated at step {content.step:,}" if content.results else "not evaluated yet"
    return element("p", f"vlalign run, {at}", class_="quiet")


def _cards(results: Results) -> list[Html]:
    cards = []
    for name, estimates in results.items():
        metric = next((metric for metric in HEADLINES if metric in estimates), None)
        if metric is None:
            continue
        found = estimates[metric]
        cards.append(
            element(
                "div",
                element("span", name, class_="what"),
                element("span", tables.head(metric), class_="range"),
                element("span", tables.value(metric, found.value), class_="value"),
                element("span", tables.interval(metric, found), class_="range"),
                class_="card",
            )
        )
    return cards


def _fact_list(facts: Sequence[tuple[str, str]]) -> Html:
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
    return element("dl", *pairs, class_="facts") if pairs else Html("")


def _facts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    facts = []
    losses, speeds = series(rows, "loss"), series(rows, "samples_per_s")
    times = [time for _, time in series(rows, "time")]
    if losses:
        facts.append(("last loss", f"{losses[-1][1]:.4g}"))
    if speeds:
        facts.append(("samples/s, median", f"{statistics.median(v for _, v in speeds):,.0f}"))
    if len(times) > 1:
        seconds = round(max(times) - min(times))
        minutes, hours = seconds // 60 % 60, seconds // 3600
        spent = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"
        facts.append(("first to last step", spent))
    return facts


def _curves(rows: Sequence[Mapping[str, Any]]) -> Html:
    figures = []
    losses, speeds = series(rows, "loss"), series(rows, "samples_per_s")
    if losses:
        raw = curves.Line(label="each step", points=losses, faint=True, colour=0)
        span = max(1, len(losses) // 40)
        mean = curves.Line(label="mean", points=curves.smooth(losses, span), colour=0)
        figures.append(_figure("Training loss", [raw, mean]))
    if speeds:
        line = curves.Line(label="samples/s", points=speeds, colour=5)
        figures.append(_figure("Throughput, samples/s", [line], from_zero=True))
    rates = series(rows, "learning_rate")
    if rates:
        line = curves.Line(label="learning rate", points=rates, colour=3)
        figures.append(_figure("Learning rate", [line], from_zero=True))
    figures += _eval_curves(rows)
    return element("div", *figures, class_="curves") if figures else Html("")


def _figure(title: str, lines: Sequence[curves.Line], **how: bool) -> Html:
    return element("figure", element("figcaption", title), curves.chart(title, lines, **how))


def _eval_curves(rows: Sequence[Mapping[str, Any]]) -> list[Html]:
    """A chart for each retrieval (its recalls), and one for all classifications (their top-1)."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("eval/"))
    recalls: dict[str, list[curves.Line]] = {}
    accuracies = []
    for key in keys:
        _, name, *rest = key.split("/")
        if len(rest) == 1 and rest[0].startswith("t2i_recall@"):
            recalls.setdefault(name, []).append(_line(rows, key, rest[0].removeprefix("t2i_")))
        elif rest == ["top1"]:
            accuracies.append(_line(rows, key, name))
    figures = [
        _figure(f"{name}: text to image", lines, percent=True) for name, lines in recalls.items()
    ]
    if accuracies:
        figures.append(_figure("Zero-shot classification: top-1", accuracies, percent=True))
    return figures


def _line(rows: Sequence[Mapping[str, Any]], key: str, label: str) -> curves.Line:
    low, high = series(rows, f"{key}/low"), series(rows, f"{key}/high")
    points = series(rows, key)
    if not len(low) == len(high) == len(points):
        low = high = []  # no interval is better than one drawn at other steps
    return curves.Line(label=label, points=points, low=low, high=high)


def _tables(results: Results) -> Html:
    """One table for all evaluators that have the same metrics."""
    parts = []
    for kind, metrics, names in tables.alike(results):
        rows = [[tables.head(m), *(_cell(m, results[name][m]) for name in names)] for m in metrics]
        parts.append(table(["", *names], rows, caption=kind))
    return join(parts)


def _cell(metric: str, found: Estimate) -> Html:
    aside = tables.interval(metric, found)
    return join([tables.value(metric, found.value), *([element("small", aside)] if aside else [])])


def _sheet(sheet: Sheet) -> Html:
    rows = [_query(row) for row in sheet.rows]
    return join([element("h3", sheet.title), element("div", *rows, class_="sheet")])


def _query(row: SheetRow) -> Html:
    about = [element("span", row.note, class_="tag")] if row.note else []
    about += [element("h4", row.query), element("span", row.detail, class_="detail")]
    hits = element("ol", *(_hit(hit) for hit in row.hits), class_="hits")
    return element("article", element("div", *about), hits, class_="query")


def _hit(hit: Hit) -> Html:
    kind, sign = {True: ("right", "✓"), False: ("wrong", "✗"), None: (None, "")}[hit.right]
    mark = element("span", sign, class_="mark", role="img", aria_label=kind) if kind else Html("")
    score = element("span", f"{hit.score:.3f} ", mark, class_="score")
    name = element("span", hit.label, class_="name", title=hit.label)
    return element("li", image(hit.image, alt=hit.label), score, name, class_=kind)


def _time(spent: Goodput | None) -> Html:
    """A bar of the whole time from the first start on, and a table of its parts."""
    if spent is None:
        return Html("")
    parts = sorted(spent.seconds.items(), key=lambda item: -item[1])
    total = sum(spent.seconds.values())
    bar = [
        element(
            "span",
            title=f"{name}: {value / total:.1%}",
            style=f"width: {100 * value / total:.2f}%; background: var(--c{number % 6})",
        )
        for number, (name, value) in enumerate(parts)
    ]
    rows = [[name, f"{value:,.1f}", f"{value / total:.1%}"] for name, value in parts]
    rows.append(["all", f"{total:,.1f}", "100.0%"])
    told = (
        f"Goodput {spent.share:.1%}: the share of the time in steps that were kept. "
        f"Restarts: {spent.restarts}. Rewinds after bad steps: {spent.rewinds}."
    )
    return join(
        [
            element("p", told),
            element("div", *bar, class_="bar", role="img", aria_label="Where the time went"),
            table(["", "seconds", "share"], rows, caption="Where the time went"),
        ]
    )


def _configuration(config: str, versions: Mapping[str, Any]) -> Html:
    parts = []
    if config:
        scroll = element("pre", config, tabindex=0, aria_label="Configuration")
        parts.append(element("details", element("summary", "Configuration"), scroll))
    if versions:
        rows = [[str(name), str(value)] for name, value in versions.items()]
        whole = element(
            "div", table(["part", "version"], rows, caption="Versions"), style="padding: 0 14px"
        )
        parts.append(element("details", element("summary", "Versions"), whole))
    return join(parts)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _newest_results(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[int, Results]:
    """evals.json if it is as new as metrics.jsonl (it also has the counts), else the latter."""
    step, results = results_of_metrics(rows)
    path = folder / "evals.json"
    if path.is_file():
        stored_step, stored = read_results(path)
        if stored_step >= step:
            return stored_step, stored
    return step, results


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) else {"versions": found}
