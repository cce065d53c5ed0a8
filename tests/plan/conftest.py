"""Plans of a tiny experiment for 8 simulated devices; the cache is a test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlalign.experiment import Experiment
from vlalign.parallel.mesh import MeshSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def sharded(tiny: Callable[..., Experiment]) -> Experiment:
    return tiny(mesh=MeshSpec(data=4, fsdp=2))
