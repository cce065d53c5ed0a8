"""What one tar shard holds, from its headers: where each sample lies, and what is wrong with it.

A sample is a run of members `KEY.jpg`, `KEY.txt`, ... that follow each other, KEY ending at the
first dot of the file's name (WebDataset).
"""

import array
import collections
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data import storage
from vlalign.data.formats.tar_headers import BLOCK, BadTar, Member, Read, members
from vlalign.data.record import PROBLEMS, BadRecord
from vlalign.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")
TEXTS = ("txt", "json", "cls", "text", "caption")
LARGEST = 256 << 20  # bytes of a sample; a larger one is a mistake or an attack
ENTRY = np.dtype([("offset", "<u8"), ("span", "<u4"), ("problem", "<u4")])


_LOCAL_BLOCK, _REMOTE_BLOCK = 8 << 10, 8 << 20  # a local archive is skipped over, another streamed
_NOTES = 5  # reports a shard
_PROBLEM = {kind: code for code, kind in enumerate(PROBLEMS)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What an index knows of one shard.

    name: below the folder that all shards share. size: bytes. samples, members: their numbers.
    digest: sha256 over names, offsets and sizes of the members. problems: kind -> how many.
    notes: what was wrong and where, the first few.
    """

    name: str
    size: int
    samples: int
    members: int
    digest: str
    problems: Mapping[str, int]
    notes: tuple[str, ...] = ()


def text_hash(text: str) -> str:
    """sha256 of a text, undecodable bytes in surrogates included."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension in small letters) of a member's name; None for what is no part of a sample.

    Those are names without a dot, hidden files, and names that begin with two underscores.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or base.startswith("__"):
        return None
    return folder + slash + stem, extension.lower()


class _Window:
    """A file read by blocks, most of which hold several small members' headers."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._block = _LOCAL_BLOCK if storage.is_local(path) else _REMOTE_BLOCK
        self._start, self._data = 0, b""

    def __call__(self, offset: int, count: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + count > len(self._data):
            wanted = min(max(count, self._block), self._size - offset)
            self._data = storage.read(self._path, offset, wanted)
            self._start, begin = offset, 0
        return self._data[begin : begin + count]


class _Scan:
    """The samples of one shard, gathered member by member."""

    def __init__(self) -> None:
        self.offsets, self.spans = array.array("Q"), array.array("I")
        self.codes, self.hashes = array.array("I"), array.array("q")
        self.problems: collections.Counter[str] = collections.Counter()
        self.notes: list[str] = []
        self.members = 0
        self.digest = hashlib.sha256()
        self._key = ""
        self._start = self._end = 0
        self._extensions: list[str] = []

    def run(self, read: Read, size: int) -> None:
        """Go through the whole shard, or to where it is damaged."""
        try:
            if not size:
                raise BadTar(0, "an empty file")
            for member in members(read, size):
                self._add(member)
            if read(size - BLOCK, BLOCK).strip(b"\0"):
                self.notes.append("no end mark: its writer may have been stopped")
        except BadTar as error:
            compressed = read(0, 2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
            hint = "; a compressed archive has no random access: unpack it" if compressed else ""
            self._close()
            self._note("unreadable shard", f"{error}; {len(self.offsets)} samples before it{hint}")
        self._close()
        self._find_duplicates()
        # Image here and caption there: not broken samples but an archive in another order.
        apart = min(self.problems[kind] for kind in ("missing image", "duplicate key"))
        if apart and 2 * apart >= len(self.offsets) - self.problems["missing image"]:
            self.notes.insert(0, "the members of a sample must follow each other: tar --sort=name")

    def _add(self, member: Member) -> None:
        self.members += 1
        line = f"{member.name}\0{member.start}\0{member.data}\0{member.size}\n"
        self.digest.update(line.encode("utf-8", "surrogateescape"))
        parts = split_name(member.name)
        if parts is None:
            self._safe(member.name)
            return
        key, extension = parts
        if key != self._key or extension in self._extensions or not self._extensions:
            self._close()
            self._key, self._start = key, member.start
        self._extensions.append(extension)
        self._end = member.end

    def _close(self) -> None:
        """The sample in progress becomes an entry."""
        extensions, self._extensions = self._extensions, []
        image = any(extension in IMAGES for extension in extensions)
        text = any(extension.rpartition(".")[2] in TEXTS for extension in extensions)
        if not image and not text:
            return
        span, problem = self._end - self._start, "ok"
        if not self._safe(self._key):
            problem = "unsafe name"
        elif span > LARGEST:
            problem = "image too large"
            self._note(problem, f"{self._key}: a sample of {span:,} bytes; at most {LARGEST:,}")
        elif not image:
            problem = "missing image"
            self._note(problem, f"{self._key} has only {', '.join(extensions)}")
        elif not text:
            problem = "missing caption"
            self._note(problem, f"{self._key} has only {', '.join(extensions)}")
        self.offsets.append(self._start)
        self.spans.append(span if span <= LARGEST else 0)
        self.codes.append(_PROBLEM[problem])
        self.hashes.append(hash(self._key))

    def _safe(self, name: str) -> bool:
        try:
            storage.check_name(name)
        except BadRecord as problem:
            self._note(problem.kind, problem.detail)
            return False
        return True

    def _note(self, problem: str, text: str) -> None:
        self.problems[problem] += 1
        if len(self.notes) < _NOTES or problem == "unreadable shard":
            self.notes.append(f"{problem}: {text}")

    def _find_duplicates(self) -> None:
        """Mark every sample whose key an earlier one has."""
        hashes = np.array(self.hashes, np.int64)
        _, first = np.unique(hashes, return_index=True)
        for index in np.setdiff1d(np.arange(len(hashes)), first, assume_unique=True).tolist():
            self.codes[index] = _PROBLEM["duplicate key"]
            self._note("duplicate key", f"the sample at byte {self.offsets[index]:,}")

    def entries(self) -> NDArray[Any]:
        """Entries (n,) of dtype `ENTRY`."""
        entries = np.zeros(len(self.offsets), ENTRY)
        entries["offset"], entries["span"] = self.offsets, self.spans
        entries["problem"] = self.codes
        return entries


def scan(path: str, size: int, name: str) -> tuple[Shard, NDArray[Any]]:
    """What one shard holds, from its headers alone; a damaged shard up to the damage.

    Raises UserError if there is no such file, and if its storage fails.
    """
    found = _Scan()
    try:
        found.run(_Window(path, size), size)
    except storage.NOT_A_FILE as error:
        raise UserError(f"shard {path} is no file, or not any more") from error
    entries = found.entries()
    digest = text_hash(f"{name}\0{size}\0{found.digest.hexdigest()}")
    shard = Shard(
        name=name,
        size=size,
        samples=len(entries),
        members=found.members,
        digest=digest,
        problems=dict(found.problems),
        notes=tuple(found.notes),
    )
    return shard, entries
