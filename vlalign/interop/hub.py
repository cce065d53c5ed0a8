"""`hf://org/name`: a model's directory in the local cache of the Hugging Face hub, or fetched."""

import importlib
import os
import re
from pathlib import Path

from vlalign.data.tokenizers.files import find_file
from vlalign.errors import UserError

SCHEME = "hf://"
_MARKS = ("open_clip_config.json", "config.json", "model.txt", "preprocessor_config.json")
# What a model needs; not its README, its ONNX and its other frameworks' copies.
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.npz", "SHA256SUMS")
_PICKLES = ("*.bin", "*.pt", "*.pth")


def cache_folder() -> Path:
    """Where the hub's library keeps models: `HF_HUB_CACHE`, or `HF_HOME`/hub, or its default."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "hub"


def resolve(name: str) -> Path:
    """The local directory of `hf://org/name` or `hf://org/name@revision`.

    From the cache where the model is there, else through `huggingface_hub`, if that is installed.
    Raises UserError that says what to do where neither helps.
    """
    found = re.fullmatch(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", name)
    if found is None or ".." in name:
        raise UserError(f"{name!r}: a model on the hub is hf://org/name or hf://org/name@revision")
    repo, revision = found.group(1), found.group(2)
    folder = cache_folder() / f"models--{repo.replace('/', '--')}"
    if (folder / "snapshots").is_dir():
        place = folder if revision is None else _revision(folder, revision)
        if place is not None:
            return find_file(str(place), _MARKS).parent
    return _download(repo, revision, folder)


def _revision(folder: Path, revision: str) -> Path | None:
    """The snapshot of a commit, a branch or a tag, if it is in the cache."""
    named = folder / "refs" / revision
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else revision
    place = folder / "snapshots" / commit
    return place if place.is_dir() else None


def _download(repo: str, revision: str | None, folder: Path) -> Path:
    try:
        library = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"{SCHEME}{repo} is not in the cache ({folder}); huggingface_hub, which would fetch "
            "it, is not installed: pip install 'vlalign[hub]', or fetch the files yourself and "
            "name their directory"
        ) from error
    try:
        listed = library.list_repo_files(repo, revision=revision)
        place = library.snapshot_download(
            repo, revision=revision, allow_patterns=_wanted(listed), ignore_patterns=_twice(listed)
        )
        return Path(place)
    except Exception as error:  # the library's own, its HTTP library's, the system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(
            f"{SCHEME}{repo} is not in the cache ({folder}) and could not be fetched: {reason}"
        ) from error


def _wanted(listed: list[str]) -> list[str]:
    """Patterns of the files to fetch; pickles only where there is nothing better."""
    safe = any(file.endswith((".safetensors", ".npz")) for file in listed)
    return [*_FILES] if safe else [*_FILES, *_PICKLES]


def _twice(listed: list[str]) -> list[str]:
    """Patterns of weights that are there under open_clip's names too."""
    own = any(file.startswith("open_clip_") and "model" in file for file in listed)
    return ["model*.safetensors*", "pytorch_model*", "*/*"] if own else ["*/*"]
