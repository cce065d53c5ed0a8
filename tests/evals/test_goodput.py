"""Where the time of a run went, on diaries written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlalign.evals.goodput import goodput, read_events
from vlalign.evals.report import Content, write_report


def event(time: float, life: str, kind: str, at: int, /, **seconds: float) -> dict[str, Any]:
    return {"time": time, "life": life, "event": kind, "step": at, "seconds": seconds}


# A process that starts in 10 s, takes steps of 1 s, is killed after step 20, and is started again
# 30 s later from the checkpoint of step 10.
KILLED = [
    event(110, "a", "start", 0, imports=4.0, restore=6.0),
    event(130, "a", "time", 10, imports=4.0, restore=6.0, compile=8.0, step=10.0, input=2.0),
    event(142, "a", "time", 20, imports=4.0, restore=6.0, compile=8.0, step=20.0, input=4.0),
    event(180, "b", "start", 10, imports=5.0, restore=3.0),
    event(195, "b", "end", 20, imports=5.0, restore=3.0, compile=2.0, step=10.0, evaluation=3.0),
]


def test_a_killed_run() -> None:
    found = goodput(KILLED)
    assert found is not None
    assert found.seconds == pytest.approx(
        {
            "start-up": 18.0,
            "steps": 20.0,  # 10 of the first process and 10 of the second were kept
            "waiting for data": 2.0,
            "steps done again": 12.0,
            "not running": 30.0,
            "starting up again": 10.0,
            "evaluation": 3.0,
        }
    )
    assert sum(found.seconds.values()) == pytest.approx(195 - 100)
    assert found.share == pytest.approx(20 / 95)
    assert (found.restarts, found.rewinds) == (1, 0)


def test_a_rewind_counts_its_steps_as_done_again() -> None:
    events = [
        event(10, "a", "start", 0, restore=10.0),
        event(14, "a", "time", 4, restore=10.0, step=4.0),
        event(20, "a", "time", 10, restore=10.0, step=10.0),
        event(21, "a", "rewind", 4, restore=11.0, step=10.0),
        event(27, "a", "end", 10, restore=11.0, step=16.0),
    ]
    found = goodput(events)
    assert found is not None
    assert (found.restarts, found.rewinds) == (0, 1)
    assert found.seconds["steps done again"] == pytest.approx(6.0)
    assert found.seconds["steps"] == pytest.approx(10.0)


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    path.write_text("".join(json.dumps(row) + "\n" for row in KILLED) + '{"time": 3, "li')
    assert read_events(path) == KILLED
    assert goodput([]) is None


def test_the_report_shows_it(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", Content(title="run", time=goodput(KILLED)))
    text = (tmp_path / "r.html").read_text()
    assert "Goodput 21.1%" in text
    assert "Restarts: 1. Rewinds after bad steps: 0." in text
    assert 'class="bar"' in text
