"""Curves as SVG that takes its colours and font from the page it stands in."""

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlalign.evals.html import Html

Points = Sequence[tuple[int, float]]

# Matplotlib wants real colours: these stand for the page's CSS variables and are exchanged below.
_FG = "#010101"
_QUIET = "#020202"
_LINE = "#030303"
_SERIES = tuple(f"#0400{number:02x}" for number in range(6))
_VARIABLES = {
    _FG: "var(--fg)",
    _QUIET: "var(--quiet)",
    _LINE: "var(--line)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(_SERIES)},
}
_MAX_POINTS = 1500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: `points` (step, value); `low` and `high` at the same steps, or empty; `faint` is
    for raw values behind a smooth line.
    """

    label: str
    points: Points
    low: Points = ()
    high: Points = ()
    faint: bool = False
    colour: int | None = None


def smooth(points: Points, span: int) -> list[tuple[int, float]]:
    """The mean of the last `span` values, roughly: an exponential one, unbiased at the start."""
    keep = 1 - 2 / (span + 1)
    total = weight = 0.0
    result = []
    for step, value in points:
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        result.append((step, total / weight if weight else float("nan")))
    return result


def chart(
    title: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = False
) -> Html:
    """One chart over steps, as inline SVG. `percent`: values are shares of 1, from zero."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # ids that differ between charts and not between reports
        "text.parse_math": False,
        "font.size": 10,
        "path.simplify": True,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.3), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            _draw(axes, line, _SERIES[(number if line.colour is None else line.colour) % 6])
        _style(axes, percent=percent, from_zero=from_zero or percent)
        if sum(not line.faint for line in lines) > 1:
            axes.legend(frameon=False, labelcolor=_FG, fontsize=9, loc="best")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), title)


def _draw(axes: Any, line: Line, colour: str) -> None:
    steps, values = _thinned(line.points)
    few = len(steps) <= 12
    axes.plot(
        steps,
        values,
        color=colour,
        linewidth=0.8 if line.faint else 1.9,
        alpha=0.35 if line.faint else 1.0,
        marker="o" if few and not line.faint else None,
        markersize=4,
        label="_" + line.label if line.faint else line.label,
    )
    if line.low and line.high:
        low_steps, low = _thinned(line.low)
        axes.fill_between(low_steps, low, _thinned(line.high)[1], color=colour, alpha=0.15, lw=0)


def _style(axes: Any, *, percent: bool, from_zero: bool) -> None:
    axes.set_xlabel("step", color=_QUIET)
    axes.tick_params(colors=_QUIET, length=0)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_LINE)
    if from_zero:
        highest = 1.08 * axes.dataLim.y1
        axes.set_ylim(0, min(1.0, max(0.05, highest)) if percent else highest)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def _thinned(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, as means of neighbours where they are more than a screen can show."""
    steps = np.asarray([step for step, _ in points], np.float64)
    values = np.asarray([value for _, value in points], np.float64)
    group = -(-len(steps) // _MAX_POINTS)
    if group > 1:
        starts = np.arange(0, len(steps), group)
        sizes = np.diff(np.append(starts, len(steps)))
        steps = np.add.reduceat(steps, starts) / sizes
        values = np.add.reduceat(values, starts) / sizes
    return steps, values


def _inline(svg: str, title: str) -> Html:
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1, axes_1: the same in every chart
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Html(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
