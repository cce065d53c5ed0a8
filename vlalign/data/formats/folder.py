"""A folder of images: in subfolders by class, with captions in files beside them, or both."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from vlalign.data import storage
from vlalign.data.formats.fields import Columns, read_json
from vlalign.data.formats.parquet import read_below
from vlalign.data.formats.tar_scan import IMAGES
from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError

_BESIDE = ("txt", "json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(Columns):
    """The images below a folder, sorted by name, which is the key.

    Columns are `folder` (the first subfolder's name), `path`, and what stands beside NAME.jpg:
    `txt` (NAME.txt), `lines` (its lines, a caption each), and below json the fields of NAME.json.

    directory: path or URL.
    captions: column -> kind of caption; a record without them is a "missing caption", unless no
        image of the folder has a file beside it.
    """

    directory: str
    captions: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"txt": "alt"})
    label: str | None = "folder"

    def __len__(self) -> int:
        return len(_opened(self.directory).names)

    def __getitem__(self, index: int) -> Record:
        found = _opened(self.directory)
        if not 0 <= index < len(found.names):
            raise IndexError(f"record {index} of a source of {len(found.names)}")
        name = found.names[index]
        image = read_below(found.root, name)
        values = self._values(found, name)
        if found.beside:
            return self.record(name, image, values)
        return dataclasses.replace(self, captions={}).record(name, image, values)

    def fingerprint(self) -> str:
        """sha256 over names and sizes of all files."""
        return _opened(self.directory).digest

    def _values(self, found: "_Folder", name: str) -> dict[str, Any]:
        folder, slash, _ = name.partition("/")
        values: dict[str, Any] = {"folder": folder if slash else None, "path": name}
        stem = name.rpartition(".")[0]
        for ending in _BESIDE:
            if f"{stem}.{ending}" not in found.beside:
                continue
            try:
                data = storage.read(storage.join(found.root, f"{stem}.{ending}"))
            except storage.NOT_A_FILE as error:
                raise BadRecord("missing caption", f"{stem}.{ending} was removed") from error
            values[ending] = read_json(data, stem) if ending == "json" else data
        if "txt" in values:
            values["lines"] = values["txt"].splitlines()
        return values


@dataclasses.dataclass(frozen=True)
class _Folder:
    """names: images; beside: captions' files."""

    root: str
    names: list[str]
    beside: frozenset[str]
    digest: str


@functools.lru_cache(maxsize=8)
def _opened(directory: str) -> _Folder:
    root = storage.normal(directory).rstrip("/") or "/"
    if not storage.is_folder(root):
        raise UserError(f"no such folder: {directory}")
    digest, names, beside = hashlib.sha256(), [], set()
    for name, size in storage.walk(root):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        ending = name.rpartition(".")[2].lower()
        if any(step.startswith(".") for step in name.split("/")):
            continue
        if ending in IMAGES:
            names.append(name)
        elif ending in _BESIDE:
            beside.add(name)
    if not names:
        raise UserError(f"{directory} holds no images ({', '.join(IMAGES)})")
    stems = {name.rpartition(".")[0] for name in names}
    kept = frozenset(name for name in beside if name.rpartition(".")[0] in stems)
    return _Folder(root, names, kept, digest.hexdigest())
