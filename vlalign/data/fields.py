"""Views that are not pictures or words: groups, duplicates, labels, stored embeddings, boxes.

Each is named in `Data.views` as the batch's field, as an image view is.
"""

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupView:
    """int32 (): equal for records of one group, which are each other's positives.

    taxonomy: one of the records' `labels` to group by; None: `Record.group`. Records without one
    are groups of their own. Numbers are hashes of 31 bits: of batches of 32,768 different groups
    one in four has two that agree by accident.
    """

    taxonomy: str | None = None

    def __call__(self, record: Record, rng: np.random.Generator) -> NDArray[np.int32]:
        """The group's number; the label's, if a taxonomy is named and the record has it."""
        del rng
        group = record.group if self.taxonomy is None else record.labels.get(self.taxonomy)
        return hashed(f"key {record.key}" if group is None else f"group {group}")

    def example(self) -> NDArray[np.int32]:
        """Zero."""
        return np.zeros((), np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateView:
    """int32 (): equal for records of equal content, which are not each other's negatives.

    by: "record" for `Record.duplicate` (or else the key), "image" for the encoded bytes, "caption"
    for the texts, without case and spaces. Hashes of 31 bits, as in `GroupView`.
    """

    by: str = "record"

    def __post_init__(self) -> None:
        if self.by not in ("record", "image", "caption"):
            raise UserError(f"DuplicateView.by={self.by!r}; valid: record, image, caption")

    def __call__(self, record: Record, rng: np.random.Generator) -> NDArray[np.int32]:
        """The content's number."""
        del rng
        if self.by == "image":
            return hashed(record.image)
        if self.by == "caption":
            texts = ("".join(caption.text.lower().split()) for caption in record.captions)
            return hashed("\0".join(sorted(texts)))
        return hashed(f"key {record.key}" if record.duplicate is None else record.duplicate)

    def example(self) -> NDArray[np.int32]:
        """Zero."""
        return np.zeros((), np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelView:
    """int32 (): the number of a record's class among `classes`, -1 for a record without one.

    classes: their names in order. taxonomy: which of the records' `labels`; None: `Record.label`.
    """

    classes: tuple[str, ...]
    taxonomy: str | None = None

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise UserError(f"LabelView.classes={self.classes}: one or more names, each once")

    def __call__(self, record: Record, rng: np.random.Generator) -> NDArray[np.int32]:
        """The class's number; UserError for a class that is not among them."""
        del rng
        label = record.label if self.taxonomy is None else record.labels.get(self.taxonomy)
        if label is not None and label not in self.classes:
            hint = nearest(label, self.classes)
            raise UserError(f"{record.key}: class {label!r} is not in LabelView.classes{hint}")
        return np.asarray(-1 if label is None else self.classes.index(label), np.int32)

    def example(self) -> NDArray[np.int32]:
        """Zero."""
        return np.zeros((), np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherView:
    """float32: an array that is stored with each record, such as a teacher's embedding.

    name: of the array. shape: that it must have.
    """

    name: str
    shape: tuple[int, ...]

    def __call__(self, record: Record, rng: np.random.Generator) -> NDArray[np.float32]:
        """The array; BadRecord if the record has none of that name and shape."""
        del rng
        stored = record.teacher.get(self.name)
        if stored is None or stored.shape != self.shape:
            found = "none" if stored is None else f"one of shape {stored.shape}"
            detail = f"{record.key}: array {self.name!r} of shape {self.shape} wanted, has {found}"
            raise BadRecord("unreadable record", detail)
        return stored.array().astype(np.float32)

    def example(self) -> NDArray[np.float32]:
        """Zeros."""
        return np.zeros(self.shape, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxesView:
    """float32 (count, 5): boxes x0, y0, x1, y1 in 0..1, and 1 for a box, 0 for none.

    count: rows; a record with more boxes gives a random choice of them, in its own order.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"BoxesView.count={self.count}: at least 1")

    def __call__(self, record: Record, rng: np.random.Generator) -> NDArray[np.float32]:
        """The record's boxes."""
        boxes = self.example()
        chosen = np.arange(len(record.regions))
        if len(chosen) > self.count:
            chosen = np.sort(rng.choice(chosen, self.count, replace=False))
        for row, index in enumerate(chosen):
            boxes[row] = (*record.regions[index].box, 1.0)
        return boxes

    def example(self) -> NDArray[np.float32]:
        """Zeros."""
        return np.zeros((self.count, 5), np.float32)


def hashed(content: str | bytes) -> NDArray[np.int32]:
    """A number in 0..2^31 - 1 that is the same on every machine."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    number = int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")
    return np.asarray(number & 0x7FFFFFFF, np.int32)
