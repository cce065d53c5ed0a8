"""Where a run's time went, over all its restarts: from its diary, `events.jsonl`.

Goodput is the share of the wall-clock time spent in steps that were kept.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

# What the accounts of `train/account.py` are called here; all others belong to starting up.
_LOOP = {
    "step": "steps",
    "input": "waiting for data",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}
START, RESTART = "start-up", "starting up again"
REPEATED, DOWN = "steps done again", "not running"


@dataclasses.dataclass(frozen=True)
class Goodput:
    """seconds: what -> seconds, of the whole time from the first start to the last event.

    restarts: how often the run was started again.   rewinds: how often it went back by itself.
    """

    seconds: dict[str, float]
    restarts: int
    rewinds: int

    @property
    def share(self) -> float:
        """Of the time, that of steps which were kept."""
        return self.seconds.get("steps", 0.0) / max(sum(self.seconds.values()), 1e-9)


def read_events(path: Path) -> list[Event]:
    """The diary's lines; one torn by a kill is left out."""
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and {"time", "life", "event"} <= event.keys():
            events.append(event)
    return events


def goodput(events: Sequence[Event]) -> Goodput | None:
    """The account of a run; None if nothing was noted."""
    ways = _ways([event for event in events if "seconds" in event])
    if not ways:
        return None
    total: dict[str, float] = defaultdict(float)
    for number, way in enumerate(ways):
        begun, ended = way[0], way[-1]
        if begun["event"] == "start":
            total[RESTART if number else START] += sum(begun["seconds"].values())
            if number:
                idle = begun["time"] - sum(begun["seconds"].values()) - ways[number - 1][-1]["time"]
                total[DOWN] += max(idle, 0.0)
        spent = _between(begun, ended)
        if number + 1 < len(ways):
            kept = [row for row in way if row["step"] <= ways[number + 1][0]["step"]]
            lost = _between(kept[-1], ended) if kept else spent
            for name in _LOOP:
                spent[name] -= lost[name]
                total[REPEATED] += lost[name]
        for name, label in _LOOP.items():
            total[label] += spent.pop(name)
        total[RESTART if number else START] += sum(spent.values())
    restarts = sum(way[0]["event"] == "start" for way in ways) - 1
    seconds = {name: value for name, value in total.items() if value > 0}
    return Goodput(seconds, restarts, len(ways) - 1 - restarts)


def _ways(events: Sequence[Event]) -> list[list[Event]]:
    """The events from each start or rewind to the next."""
    ways: list[list[Event]] = []
    for event in events:
        if event["event"] in ("start", "rewind"):
            ways.append([])
        if ways:
            ways[-1].append(event)
    return ways


def _between(first: Event, last: Event) -> dict[str, float]:
    """Account -> seconds from one event to a later one of the same process."""
    names = dict.fromkeys([*_LOOP, *last["seconds"]])
    before, after = first["seconds"], last["seconds"]
    return {name: after.get(name, 0.0) - before.get(name, 0.0) for name in names}
