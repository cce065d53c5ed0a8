"""Plans side by side as a picture: time of a step, memory of a chip, collectives."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlalign.plan.plans import Plan
from vlalign.plan.search import memory_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB = 2**30


def draw(plans: Sequence[Plan]) -> bytes:
    """A PNG with three panels, a bar a plan. Plans that do not fit have no time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.45 * len(plans)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    names = [label(plan) for plan in plans]
    _times(panels[0], plans)
    _memory(panels[1], plans)
    panels[2].barh(range(len(plans)), [p.estimate.wire / 1e6 if p.estimate else 0 for p in plans])
    panels[2].set_title("sent by a chip in a step, MB", fontsize=10)
    panels[0].set_yticks(range(len(plans)), names, fontsize=9)
    panels[0].invert_yaxis()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def label(plan: Plan) -> str:
    """Configuration, target and batch, in two lines."""
    return f"{plan.config}\n{plan.target}, batch {plan.batch:,}"


def _times(panel: "Axes", plans: Sequence[Plan]) -> None:
    for place, plan in enumerate(plans):
        time = plan.estimate.time if plan.estimate else None
        if time is None:
            continue
        if time.compiler is not None:
            panel.barh(place, 1e3 * time.compiler, color="C0", alpha=0.35)
        panel.barh(place, 1e3 * time.roofline, height=0.55, color="C0")
        share = plan.share_of_peak()
        note = f" MFU {100 * share:.0f} %" if share else ""
        panel.text(1e3 * time.step, place, note, va="center", fontsize=8)
    panel.set_title("step, ms, estimated:\nroofline (dark), compiler (pale)", fontsize=10)
    panel.margins(x=0.25)


def _memory(panel: "Axes", plans: Sequence[Plan]) -> None:
    for place, plan in enumerate(plans):
        needed, limit = memory_of(plan)
        panel.barh(place, needed / _GIB, color="C3" if plan.fits is False else "C2")
        if limit:
            panel.plot([limit / _GIB] * 2, [place - 0.4, place + 0.4], color="black", lw=1.5)
    panel.set_title("memory of a chip, GiB\n(line: what there is)", fontsize=10)
