"""WebDataset: samples in tar shards, as img2dataset writes them, read at random by an index."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from vlalign.data import storage
from vlalign.data.formats import tar_index
from vlalign.data.formats.fields import Columns, looks_converted, picture, read_json
from vlalign.data.formats.tar_headers import BadTar, members
from vlalign.data.formats.tar_scan import IMAGES, split_name
from vlalign.data.record import PROBLEMS, BadRecord, Record

# "missing caption" is for the columns to say: labels, or JSON, may be all that is wanted.
_FINAL = ("unsafe name", "duplicate key", "image too large", "missing image")

_PEEK = 4 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDatasetSource(Columns):
    """Samples in tar shards: members KEY.jpg, KEY.txt, KEY.json, ... one after the other.

    Columns are extensions (`txt`, `cls`) and, below json, its fields (`json/caption`). The key is
    SHARD/KEY. The index is built when it is first needed, see `tar_index.open_index`.

    shards: paths or URLs; `{000..010}` stands for numbers, `*` for any name.
    index: folder or URL where the index is kept; None: beside the shards, else in a cache.
    """

    shards: tuple[str, ...]
    index: str | None = None
    captions: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"txt": "alt"})

    def __len__(self) -> int:
        return len(self.opened())

    def __getitem__(self, index: int) -> Record:
        opened = self.opened()
        if not 0 <= index < len(opened):
            raise IndexError(f"record {index} of a source of {len(opened)}")
        name, offset, span, code = opened.locate(index)
        place = f"{name} at byte {offset:,}"
        if PROBLEMS[code] in _FINAL:
            raise BadRecord(PROBLEMS[code], place)
        try:
            data = storage.read(storage.join(opened.folder, name), offset, span)
            key, values = _sample(data, place)
        except storage.NOT_A_FILE as error:
            raise BadRecord("unreadable shard", f"{name} is gone: {error}") from error
        except BadTar as error:
            detail = f"{place} is not as it was indexed: {error}"
            raise BadRecord("unreadable record", detail) from error
        image = next((values[kind] for kind in IMAGES if kind in values), None)
        place = f"{name.removesuffix('.tar')}/{key}"
        found = picture(image, place)
        if self.converted:
            return self.record(place, found, _fields(values.get("json", b""), place))
        return self.record(place, found, self._parsed(values, place))

    def _parsed(self, values: Mapping[str, bytes], place: str) -> dict[str, Any]:
        """The members' bytes, JSON as the object it is where a column goes into it."""
        columns = self.columns()
        return {
            name: read_json(data, f"{place}.{name}")
            if name.endswith("json") and any(column.startswith(f"{name}/") for column in columns)
            else data
            for name, data in values.items()
        }

    def fingerprint(self) -> str:
        """sha256 over names, offsets and sizes of all members."""
        return self.opened().fingerprint()

    def problems(self) -> dict[str, int]:
        """Kind -> how often, found by the index."""
        return self.opened().problems()

    def opened(self) -> tar_index.TarIndex:
        """The index, built if need be, kept for this process."""
        return _opened(self.shards, self.index)


def is_converted(shard: str) -> bool:
    """Whether a shard's first sample is one that `vlalign data convert` wrote."""
    try:
        data = storage.read(shard, 0, _PEEK)
        for member in members(lambda at, count: data[at : at + count], len(data)):
            if member.name.endswith(".json"):
                return looks_converted(_fields(data[member.data : member.end], shard))
    except (BadTar, BadRecord, *storage.NOT_A_FILE):
        pass
    return False


def _fields(data: bytes, place: str) -> dict[str, Any]:
    fields = read_json(data, place)
    return fields if isinstance(fields, dict) else {}


@functools.lru_cache(maxsize=16)
def _opened(shards: tuple[str, ...], index: str | None) -> tar_index.TarIndex:
    return tar_index.open_index(storage.expand(shards), index)


def _sample(data: bytes, place: str) -> tuple[str, dict[str, bytes]]:
    """Key and extension -> bytes of the members in a sample's span of an archive."""
    values: dict[str, bytes] = {}
    keys = set()
    for member in members(lambda at, count: data[at : at + count], len(data)):
        parts = split_name(member.name)
        if parts is not None:
            keys.add(parts[0])
            values[parts[1]] = data[member.data : member.end]
    if len(keys) != 1:
        raise BadRecord("unreadable record", f"{place} is not as it was indexed: {len(keys)} keys")
    return storage.check_name(keys.pop()), values
