"""docs/losses.md names only what exists."""

import importlib
import pkgutil
import re
from pathlib import Path

import vlalign.losses

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")


def known() -> set[str]:
    """Every public name of the losses, and of their arguments."""
    names: set[str] = set()
    for module in pkgutil.iter_modules(vlalign.losses.__path__, "vlalign.losses."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            names |= {name, *getattr(thing, "__annotations__", {})}
    return names


def test_every_call_exists():
    rows = [line.split("|") for line in TEXT.splitlines() if line.startswith("| ")]
    calls = " ".join(code for row in rows if len(row) > 5 for code in re.findall("`(.*?)`", row[3]))
    names = set(re.findall(r"\b([A-Za-z_]{3,})(?:\(|=|$)", calls.replace(" ", "\n"), re.M))
    local = {"negatives", "queue", "share", "gates"}
    assert len(names) > 50
    assert names - known() - local == set()


def test_every_test_file_exists():
    files = set(re.findall(r"`(?:tests/losses/)?(test_\w+\.py)`", TEXT))
    assert len(files) > 8
    assert {name for name in files if not (ROOT / "tests" / "losses" / name).is_file()} == set()
