"""The invertible transformations between our parameters and other people's tensors.

Ours: dense kernels (inputs..., outputs...), convolutions (h, w, in, out), heads an axis of their
own. Each transformation works on one layer; `rows.py` stacks layers. One may join several of
our parameters or several of their tensors, so all three methods take and return tuples.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = tuple[Array, ...]
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


class How(Protocol):
    """A transformation, readable both ways: `out(into(x)) == x` bit by bit."""

    def shapes(self, ours: Shapes) -> Shapes:
        """Shapes of their tensors, from those of our parameters; ValueError if there are none."""

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        """Their tensors as our parameters of the shapes `ours`."""

    def out(self, ours: Arrays) -> Arrays:
        """Our parameters as their tensors."""


@dataclasses.dataclass(frozen=True)
class Same:
    """As it is."""

    def shapes(self, ours: Shapes) -> Shapes:
        return ours

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        return tuple(x.reshape(shape) for x, shape in zip(theirs, ours, strict=True))

    def out(self, ours: Arrays) -> Arrays:
        return ours


@dataclasses.dataclass(frozen=True)
class Dense:
    """(inputs..., outputs...) <-> (all outputs, all inputs), as torch's `Linear` keeps it.

    Heads lie in order, and so do q, k, v of a fused projection: (d, 3, h, k) <-> (3*h*k, d).

    inputs: how many of our axes are inputs (2 for the output projection (h, k, d)).
    """

    inputs: int = 1

    def shapes(self, ours: Shapes) -> Shapes:
        return tuple((math.prod(s[self.inputs :]), math.prod(s[: self.inputs])) for s in ours)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        return tuple(x.T.reshape(shape) for x, shape in zip(theirs, ours, strict=True))

    def out(self, ours: Arrays) -> Arrays:
        return tuple(x.reshape(math.prod(x.shape[: self.inputs]), -1).T for x in ours)


@dataclasses.dataclass(frozen=True)
class Flat:
    """Any axes <-> one: a bias (h, k) or (3, h, k) <-> (h*k,) or (3*h*k,)."""

    def shapes(self, ours: Shapes) -> Shapes:
        return tuple((math.prod(shape),) for shape in ours)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        return tuple(x.reshape(shape) for x, shape in zip(theirs, ours, strict=True))

    def out(self, ours: Arrays) -> Arrays:
        return tuple(x.reshape(-1) for x in ours)


@dataclasses.dataclass(frozen=True)
class Ones:
    """Axes of length 1 in front: ours has `ours` of them, theirs `theirs`."""

    ours: int = 0
    theirs: int = 0

    def shapes(self, ours: Shapes) -> Shapes:
        return tuple((1,) * self.theirs + shape[self.ours :] for shape in ours)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        return tuple(x.reshape(shape) for x, shape in zip(theirs, ours, strict=True))

    def out(self, ours: Arrays) -> Arrays:
        return tuple(x.reshape((1,) * self.theirs + x.shape[self.ours :]) for x in ours)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution's kernel (h, w, in, out) <-> (out, in, h, w)."""

    def shapes(self, ours: Shapes) -> Shapes:
        return tuple((o, i, h, w) for h, w, i, o in ours)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        return tuple(x.transpose(2, 3, 1, 0) for x in theirs)

    def out(self, ours: Arrays) -> Arrays:
        return tuple(x.transpose(3, 2, 0, 1) for x in ours)


@dataclasses.dataclass(frozen=True)
class Patch:
    """A dense map of flattened patches (p*p*c, d) <-> a convolution (d, c, p, p).

    hwio: whether theirs is (p, p, c, d), as flax keeps convolutions.   channels: c.
    """

    hwio: bool = False
    channels: int = 3

    def _kernel(self, shape: Shape) -> Shape:
        """(p, p, c, d) of (p*p*c, d)."""
        side = math.isqrt(shape[0] // self.channels)
        if len(shape) != 2 or side * side * self.channels != shape[0]:
            raise ValueError(f"{shape} is not a map of square patches of {self.channels} channels")
        return side, side, self.channels, shape[1]

    def shapes(self, ours: Shapes) -> Shapes:
        kernels = tuple(self._kernel(shape) for shape in ours)
        return kernels if self.hwio else Conv().shapes(kernels)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        kernels = theirs if self.hwio else Conv().into(theirs, ours)
        return tuple(x.reshape(shape) for x, shape in zip(kernels, ours, strict=True))

    def out(self, ours: Arrays) -> Arrays:
        kernels = tuple(x.reshape(self._kernel(x.shape)) for x in ours)
        return kernels if self.hwio else Conv().out(kernels)


@dataclasses.dataclass(frozen=True)
class Parts:
    """One of ours <-> several of theirs: each is `how` of a slice of ours along `axis`.

    Separate q, k, v: `Parts(Dense(), axis=1)` for (d, 3, h, k), `Parts(Flat())` for (3, h, k).
    """

    how: How
    axis: int = 0

    def shapes(self, ours: Shapes) -> Shapes:
        (shape,) = ours
        return self.how.shapes((self._part(shape),)) * shape[self.axis]

    def _part(self, shape: Shape) -> Shape:
        return shape[: self.axis] + shape[self.axis + 1 :]

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        part = (self._part(ours[0]),)
        return (np.stack([self.how.into((x,), part)[0] for x in theirs], self.axis),)

    def out(self, ours: Arrays) -> Arrays:
        slices = np.moveaxis(ours[0], self.axis, 0)
        return tuple(self.how.out((part,))[0] for part in slices)


@dataclasses.dataclass(frozen=True)
class Below:
    """Several of ours <-> one of theirs: each `how`, one below the other along their first axis.

    A fused projection that we keep as query and keys-with-values: `Below(Dense())`.
    """

    how: How

    def shapes(self, ours: Shapes) -> Shapes:
        parts = self.how.shapes(ours)
        return ((sum(part[0] for part in parts), *parts[0][1:]),)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        rows = np.cumsum([part[0] for part in self.how.shapes(ours)])[:-1]
        return self.how.into(tuple(np.split(theirs[0], rows)), ours)

    def out(self, ours: Arrays) -> Arrays:
        return (np.concatenate(self.how.out(ours)),)


@dataclasses.dataclass(frozen=True)
class TokenAndPositions:
    """Our token (1, d) and positions of patches (l, d) <-> their token and positions (1 + l, d).

    CLIP adds a position to its class token; with us the sum of the two is the token. So theirs are
    read as that sum, which is the same number, and written as the token with a position of zero:
    what a file from elsewhere had in the two of them apart does not come back.

    axes: of their token: 1 for (d,), 3 for (1, 1, d), whose positions are (1, 1 + l, d).
    """

    axes: int = 1

    def shapes(self, ours: Shapes) -> Shapes:
        (_, d), (l, _) = ours
        return (1,) * (self.axes - 1) + (d,), (1,) * (self.axes // 2) + (1 + l, d)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        token, positions = theirs
        positions = positions.reshape(-1, positions.shape[-1])
        return token.reshape(ours[0]) + positions[:1], positions[1:]

    def out(self, ours: Arrays) -> Arrays:
        token, positions = ours
        both = np.concatenate([np.zeros_like(token), positions])
        shapes = self.shapes((token.shape, positions.shape))
        return token.reshape(shapes[0]), both.reshape(shapes[1])


def sizes(shapes: Iterable[Shape]) -> str:
    """Shapes as people write them: `512x768, 768`; a number alone is `scalar`."""
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
