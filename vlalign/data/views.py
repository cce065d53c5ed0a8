"""The contract of a view: a record to one field of the batch, or to several."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]
Value = NDArray[Any] | str | tuple[str, ...]
# One field, or several: "" is the view's own, any other key is NAME_key.
Values = Value | Mapping[str, Value]


@runtime_checkable
class View(Protocol):
    """A named field of the batch, made from a record: an array, or texts that are tokenised.

    A view with an attribute `partners` is given a tuple of records: the sample's, and those of so
    many positions behind it in the global order.
    """

    def __call__(self, record: Any, rng: np.random.Generator, /) -> Values:
        """The field's value for one sample; BadRecord if the record cannot give it.

        Several texts always are of one number; "" stands for one that the record does not have.
        """

    def example(self) -> Values:
        """A value of the right shape and dtype, without data; a text for a text view."""


@runtime_checkable
class ImagePreparation(Protocol):
    """What a view of images says of evaluation: how it prepares them there, without chance."""

    def evaluate(self, image: bytes, /) -> NDArray[np.uint8]:
        """The deterministic view (size, size, 3) of encoded bytes; BadRecord if they are bad."""

    def spec(self) -> dict[str, Any]:
        """The same as plain data, to be compared."""


def fields_of(name: str, values: Values) -> dict[str, Value]:
    """The fields of a view by their names in the batch."""
    if not isinstance(values, Mapping):
        return {name: values}
    return {f"{name}_{key}" if key else name: value for key, value in values.items()}
