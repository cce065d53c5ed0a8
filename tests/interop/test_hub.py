"""`hf://` names: the local cache, and clear words where it has nothing. No network is used."""

import shutil
import sys
from pathlib import Path

import pytest

from vlalign.errors import UserError
from vlalign.interop import hub
from vlalign.interop.convert import load

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's library keeps it, with one model in two revisions."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    model = tmp_path / "models--org--small.clip"
    for commit in ("aaa", "bbb"):
        shutil.copytree(GOLDEN / "hf_clip", model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("bbb")
    return model


def test_a_cached_model_is_found(cache: Path) -> None:
    assert hub.resolve("hf://org/small.clip") == cache / "snapshots" / "bbb"
    assert hub.resolve("hf://org/small.clip@aaa") == cache / "snapshots" / "aaa"
    assert hub.resolve("hf://org/small.clip@main") == cache / "snapshots" / "bbb"
    found = load("hf://org/small.clip")
    assert found.origin == str(cache / "snapshots" / "bbb")
    assert found.tokenizer is not None


@pytest.mark.parametrize("name", ["hf://org/other", "hf://org/small.clip@ccc"])
def test_a_model_that_is_not_there(name: str, cache: Path) -> None:
    with pytest.raises(UserError, match=r"not in the cache.*pip install 'vlalign\[hub\]'"):
        load(name)


@pytest.mark.parametrize("name", ["hf://org", "hf://a/b/c", "hf://../x", "hf://a/b@../../etc"])
def test_names_that_are_none(name: str, cache: Path) -> None:
    with pytest.raises(UserError, match="a model on the hub is hf://org/name"):
        hub.resolve(name)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", "/data/hf")
    assert hub.cache_folder() == Path("/data/hf/hub")


def test_a_download_that_fails_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def list_repo_files(repo: str, revision: str | None) -> list[str]:
            raise OSError(f"no route to {repo}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Library)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="could not be fetched: no route to org/other"):
        load("hf://org/other")


def test_what_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are fetched only where there is nothing better, and no weights twice."""
    asked = []

    class Library:
        files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")

        @classmethod
        def list_repo_files(cls, repo: str, revision: str | None) -> list[str]:
            return list(cls.files)

        @staticmethod
        def snapshot_download(
            repo: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
        ) -> str:
            twice = "model*.safetensors*" in ignore_patterns
            asked.append((repo, revision, "*.bin" in allow_patterns, twice))
            return str(cache / "snapshots" / "aaa")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Library)  # type: ignore[arg-type]
    assert hub.resolve("hf://org/other@v1") == cache / "snapshots" / "aaa"
    Library.files = ("pytorch_model.bin",)
    hub.resolve("hf://org/other")
    Library.files = ("model.safetensors", "open_clip_model.safetensors")
    hub.resolve("hf://org/both")
    assert asked == [
        ("org/other", "v1", False, False),
        ("org/other", None, True, False),
        ("org/both", None, False, True),
    ]
