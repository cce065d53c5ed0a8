"""`vlalign doctor`: what it prints, and that it finds what is wrong."""

import json
from pathlib import Path

import pytest

from vlalign import cli, versions
from vlalign.cli import _machine, doctor
from vlalign.errors import UserError


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["jax"]
    assert facts["machine"]["cores"] >= 1
    assert 0 < facts["machine"]["ram_free_bytes"] <= facts["machine"]["ram_bytes"]
    assert [device["id"] for device in facts["devices"]] == list(range(8))
    assert {check["check"] for check in facts["checks"]} == set(doctor.CHECKS)
    assert all(check["ok"] for check in facts["checks"])


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the check that takes seconds."""
    monkeypatch.delitem(doctor.CHECKS, "training")


@pytest.mark.usefixtures("without_training")
def test_text_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "cpu:7" in shown
    assert all(f"ok      {name}: " in shown for name in doctor.CHECKS)


@pytest.mark.usefixtures("without_training")
def test_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("jax", "no-such-package"))
    assert cli.main(["doctor"]) == 1
    assert "FAILED  packages: not installed: no-such-package" in capsys.readouterr().out


def test_a_training_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str | None) -> Path:
        raise UserError("no configuration 'emoji_clip'")

    monkeypatch.setattr(doctor, "find_config", missing)
    finding = doctor.examine("training", doctor.check_training)
    assert not finding.ok
    assert finding.detail == "UserError: no configuration 'emoji_clip'"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 1 << 60)
    finding = doctor.examine("disk", doctor.check_disk)
    assert not finding.ok
    assert "--run-dir" in finding.detail


def test_an_accelerator_that_jax_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ACCELERATORS", {str(tmp_path): "tpu"})
    finding = doctor.examine("devices", doctor.check_devices)
    assert not finding.ok
    assert "pip install 'vlalign[tpu]'" in finding.detail


@pytest.mark.usefixtures("without_training")
def test_a_backend_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[dict[str, object]]:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(_machine, "devices", broken)
    assert cli.main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    failed = {check["check"]: check["detail"] for check in facts["checks"] if not check["ok"]}
    assert failed["devices"] == "RuntimeError: Unable to initialize backend 'cuda'"
    assert facts["devices"] == []
