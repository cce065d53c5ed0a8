"""Any prepared TFDS data set as a source, without TensorFlow: images stay encoded bytes."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlalign.data import storage
from vlalign.data.formats.fields import Columns, lookup, picture
from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(Columns):
    """One split of a data set prepared in a format of random access (ArrayRecord, Parquet, ...).

    Columns are features; a slash goes into nested ones, such as `captions/text`.

    directory: of the prepared version, such as DATA_DIR/coco_captions/1.1.0.
    split: a TFDS split, such as "train" or "train[:10%]".
    image: feature of type Image.
    captions: column -> kind of caption. label: a ClassLabel gives the class's name.
    """

    directory: str
    split: str = "train"
    image: str = "image"

    def __len__(self) -> int:
        return len(_opened(self.directory, self.split, self.image).data)

    def __getitem__(self, index: int) -> Record:
        opened = _opened(self.directory, self.split, self.image)
        if not 0 <= index < len(opened.data):
            raise IndexError(f"record {index} of a source of {len(opened.data)}")
        self._check(tuple(opened.features))
        place = f"{self.split}:{index}"
        try:
            values = _plain(opened.data[index])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadRecord("unreadable record", f"{place}: {error}") from error
        for column in (self.label, *self.labels):
            names = getattr(opened.features.get(column or ""), "names", None)
            number = values.get(column or "")
            if column and names and isinstance(number, int) and 0 <= number < len(names):
                values[column] = names[number]
        return self.record(place, picture(lookup(values, self.image), place), values)

    def fingerprint(self) -> str:
        """sha256 over names and sizes of the data set's files, what its JSON files say, the split.

        dataset_info.json holds the splits' lengths and byte counts.
        """
        _opened(self.directory, self.split, self.image)
        digest = hashlib.sha256(self.split.encode())
        for name, size in storage.walk(self.directory):
            digest.update(f"{name}\0{size}\n".encode())
            if name.endswith(".json"):
                digest.update(storage.read(storage.join(self.directory, name)))
        return digest.hexdigest()

    def _check(self, names: tuple[str, ...]) -> None:
        for column in (self.image, *self.columns()):
            if column.partition("/")[0] not in names:
                raise UserError(
                    f"{self.directory} has no feature {column!r}{nearest(column, names)}"
                )


def is_prepared(directory: str) -> bool:
    """Whether a folder is a prepared version of a TFDS data set."""
    return storage.exists(storage.join(directory, "dataset_info.json"))


@dataclasses.dataclass(frozen=True)
class _Opened:
    data: Any
    features: Mapping[str, Any]


@functools.lru_cache(maxsize=8)
def _opened(directory: str, split: str, image: str) -> _Opened:
    import tensorflow_datasets as tfds  # slow, and needed for nothing else

    if not is_prepared(directory):
        raise UserError(f"{directory} is no prepared TFDS data set: it has no dataset_info.json")
    try:
        builder = tfds.builder_from_directory(directory)
        decoders: Any = tfds.decode.SkipDecoding()
        for step in reversed(image.split("/")):
            decoders = {step: decoders}
        data = builder.as_data_source(split, decoders=decoders)
        return _Opened(data, dict(builder.info.features))
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise UserError(f"cannot open split {split!r} of {Path(directory)}: {error}") from error


def _plain(value: Any) -> Any:
    """Arrays and numpy's numbers as Python's; bytes stay."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist()) if value.dtype == object else value.tolist()
    return value


def splits_and_features(directory: str) -> tuple[list[str], list[str]]:
    """Names of the splits and of the features; UserError if it is no prepared data set."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(directory).info
        return sorted(info.splits), sorted(info.features)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"cannot open {directory}: {error}") from error
