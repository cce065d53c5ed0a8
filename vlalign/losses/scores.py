"""Scores of pairs: how alike a row and a column are. A new kind of score is a new class.

Losses take one as `score=`. All are `scale * similarity + bias`, in float32 or wider, and compute a
tile of rows and columns at a time; none is bounded, as far as the losses are concerned.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses.kernel.sweep import Tree, wide

# {"scale": (), "bias": () or None}, and "own": whatever more parameters a score has, or None.
Shared = dict[str, Any]

# Longest side of a tile: by benchmarks/contrast.py on CPU, by benchmarks/contrast_tpu.py on TPU.
BLOCK_SIZE, TPU_BLOCK_SIZE = 1024, 4096
# Numbers that a tile may hold at once in scores that compare more than two vectors.
_TILE_NUMBERS = 4 * BLOCK_SIZE**2


@dataclasses.dataclass(frozen=True)
class Score(abc.ABC):
    """Base of the scores: `similarity` is enough, its gradient is made by jax tile by tile.

    Rows and columns are trees of arrays (n, ...); leaves that are not floats get no gradient.
    """

    @abc.abstractmethod
    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """Similarities (r, c), float32 or wider, of r rows with c columns."""

    @abc.abstractmethod
    def check(self, row: Tree, column: Tree) -> None:
        """Raises ValueError for rows and columns that this score cannot compare."""

    def block_size(self, row: Tree, column: Tree) -> int:
        """Longest side of a tile that keeps temporaries small and products large."""
        del row, column
        return TPU_BLOCK_SIZE if jax.default_backend() == "tpu" else BLOCK_SIZE

    def forward(self, row: Tree, column: Tree, shared: Shared) -> jax.Array:
        """Scores (r, c)."""
        scores = shared["scale"] * self.similarity(row, column, shared["own"])
        return scores if shared["bias"] is None else scores + shared["bias"]

    def matched(self, row: Tree, column: Tree, shared: Shared) -> jax.Array:
        """Scores (n,) of row i with column i."""

        def one(row: Tree, column: Tree) -> jax.Array:
            row, column = (jax.tree.map(lambda a: a[None], side) for side in (row, column))
            return self.forward(row, column, shared)[0, 0]

        return jax.vmap(one)(row, column)

    def backward(
        self, grad: jax.Array, row: Tree, column: Tree, shared: Shared
    ) -> tuple[Tree, Tree, Tree]:
        """Gradients of sum(grad * scores) for row, column and shared, float32 or wider."""
        leaves, tree = jax.tree.flatten((row, column, shared))
        floats = [jnp.issubdtype(a.dtype, jnp.floating) for a in leaves]
        learned = [a for a, is_float in zip(leaves, floats, strict=True) if is_float]

        def forward(learned: list[jax.Array]) -> jax.Array:
            some = iter(learned)
            both = [next(some) if f else a for a, f in zip(leaves, floats, strict=True)]
            return self.forward(*jax.tree.unflatten(tree, both))

        found = iter(jax.vjp(forward, learned)[1](grad)[0])
        grads = [next(found) if is_float else None for is_float in floats]
        sides: tuple[Tree, Tree, Tree] = jax.tree.unflatten(
            tree, [None if g is None else g.astype(wide(g.dtype)) for g in grads]
        )
        return sides

    def finish(
        self,
        for_row: Tree,
        for_column: Tree,
        for_extra: Tree,
        for_shared: Shared,
        row: Tree,
        shared: Shared,
    ) -> tuple[Tree, Tree, Tree, Shared]:
        """Gradients from the sums over tiles of what `backward` returned: what is done once.

        for_extra: as for_column, of extra columns, or None. row: all rows that for_row is of.
        """
        del row, shared
        return for_row, for_column, for_extra, for_shared


@dataclasses.dataclass(frozen=True)
class Cosine(Score):
    """<row, column> of arrays (n, d): of unit vectors, the cosine."""

    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """Products in the input dtype, summed in float32 or wider."""
        del own
        return product(row, column, ((1,), (1,)))

    def check(self, row: Tree, column: Tree) -> None:
        check_vectors(row, column)

    def matched(self, row: Tree, column: Tree, shared: Shared) -> jax.Array:
        """Sums of products, never a matrix."""
        dtype = wide(row.dtype)
        scores = shared["scale"] * jnp.sum(row.astype(dtype) * column.astype(dtype), axis=1)
        return scores if shared["bias"] is None else scores + shared["bias"]

    def backward(
        self, grad: jax.Array, row: Tree, column: Tree, shared: Shared
    ) -> tuple[Tree, Tree, Tree]:
        """Two products, without the scale, and the bias's gradient."""
        low = grad.astype(row.dtype)
        for_row = product(low, column, ((1,), (0,)))
        for_column = product(low, row, ((0,), (0,)))
        bias = None if shared["bias"] is None else jnp.sum(grad)
        return (
            for_row,
            for_column,
            {"scale": jnp.zeros_like(grad, shape=()), "bias": bias, "own": None},
        )

    def finish(
        self,
        for_row: Tree,
        for_column: Tree,
        for_extra: Tree,
        for_shared: Shared,
        row: Tree,
        shared: Shared,
    ) -> tuple[Tree, Tree, Tree, Shared]:
        """Times the scale, whose own gradient is <row, for_row>: no tile has to sum cosines."""
        scale = jnp.sum(row.astype(for_row.dtype) * for_row)
        extra = None if for_extra is None else shared["scale"] * for_extra
        gradients = (shared["scale"] * for_row, shared["scale"] * for_column, extra)
        return *gradients, for_shared | {"scale": scale}


@dataclasses.dataclass(frozen=True)
class NegativeDistance(Score):
    """-||row - column||^2 of arrays (n, d) of any length.

    By ||x||^2 + ||y||^2 - 2 <x, y>: vectors much longer than their distance lose digits.
    """

    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """Products in the input dtype, summed in float32 or wider."""
        del own
        inner = product(row, column, ((1,), (1,)))
        square = [jnp.sum(jnp.square(z.astype(inner.dtype)), axis=1) for z in (row, column)]
        return 2.0 * inner - square[0][:, None] - square[1][None, :]

    def check(self, row: Tree, column: Tree) -> None:
        check_vectors(row, column)


@dataclasses.dataclass(frozen=True)
class LateInteraction(Score):
    """Mean over a row's tokens of the best similarity with the column's tokens.

    FILIP (Yao et al. 2021, arXiv:2111.07783, eq. 4) with the rows' direction only: its loss is two
    calls of `directions=(1, 0)`, images against texts and texts against images.
    smoothness: 0 for the maximum, else a * log sum exp(similarity / a), the log-sum-exp of words
    and frames of Norton (Lin et al. 2024, arXiv:2401.16702, eq. 5).
    symmetric: the mean of both directions (Norton).

    Rows and columns are `tokens(z_bld, mask_bl)`. A sample without a token scores 0.
    """

    smoothness: float = 0.0
    symmetric: bool = False

    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """All products of tokens of the tile, then the reduction."""
        del own
        dtype = wide(row["z"].dtype)
        sims = product(row["z"], column["z"], ((2,), (2,)))  # (r, n, c, m)
        mine, theirs = row["mask"][:, :, None, None], column["mask"][None, None, :, :]
        scores = self._reduce(sims, mine, theirs, 3, dtype)
        if not self.symmetric:
            return scores
        return 0.5 * (scores + self._reduce(sims, theirs, mine, 1, dtype))

    def _reduce(
        self, sims: jax.Array, mine: jax.Array, theirs: jax.Array, axis: int, dtype: jnp.dtype
    ) -> jax.Array:
        """Best over the tokens of `axis`, mean over those of the other side: (r, c)."""
        kept = jnp.where(theirs, sims, jnp.asarray(-1e30, dtype))
        if self.smoothness:
            a = self.smoothness
            best = a * jax.nn.logsumexp(kept / a, axis=axis, keepdims=True)
        else:
            best = kept.max(axis=axis, keepdims=True)
        counts = mine & theirs.any(axis=axis, keepdims=True)
        total = jnp.where(counts, best, 0.0).sum(axis=(1, 3))
        return total / jnp.maximum(mine.sum(axis=(1, 3), dtype=dtype), 1.0)

    def check(self, row: Tree, column: Tree) -> None:
        for name, side in (("x", row), ("y", column)):
            if not isinstance(side, dict) or set(side) != {"z", "mask"} or side["z"].ndim != 3:
                raise ValueError(f"{name}: LateInteraction compares `tokens(z_bld, mask_bl)`")
        if row["z"].shape[2] != column["z"].shape[2] or row["z"].dtype != column["z"].dtype:
            raise ValueError(
                f"x tokens {row['z'].shape} {row['z'].dtype} and y tokens {column['z'].shape} "
                f"{column['z'].dtype}: must have one width and one dtype"
            )

    def block_size(self, row: Tree, column: Tree) -> int:
        """As many pairs as their products of tokens fit."""
        return _side_of_tile(row["z"].shape[1] * column["z"].shape[1])


@dataclasses.dataclass(frozen=True)
class Volume(Score):
    """-volume spanned by a row's unit vector and the k unit vectors of a column; rows (n, d).

    GRAM (Cicchetti et al. 2024, arXiv:2412.11959, eq. 3 and 5): sqrt(det of the Gram matrix) of
    k + 1 modalities; for k = 1, -|sin| of the angle. Columns are `volume_columns(y_bkd)`: the
    volume is theirs times the row's distance from the space they span.
    """

    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """One product for each of the k directions."""
        del own
        row = row.astype(column["basis"].dtype)
        inside = product(row, column["basis"], ((1,), (2,)))  # (r, c, k)
        square = jnp.sum(jnp.square(row), axis=1)[:, None]
        height = jnp.maximum(square - jnp.sum(jnp.square(inside), axis=2), _SMALL)
        return -jnp.sqrt(height) * column["volume"][None, :]

    def check(self, row: Tree, column: Tree) -> None:
        if not isinstance(column, dict) or set(column) != {"basis", "volume"}:
            raise ValueError("y: Volume compares vectors with `volume_columns(y_bkd)`")
        if row.ndim != 2 or row.shape[1] != column["basis"].shape[2]:
            raise ValueError(f"x {row.shape}, y {column['basis'].shape}: must be (B, d), (B, k, d)")

    def block_size(self, row: Tree, column: Tree) -> int:
        """As many pairs as their k products fit."""
        return _side_of_tile(4 * column["basis"].shape[1])


# Square of the height below which a row lies in the columns' space, to float32's rounding: the
# slope of the square root ends there.
_SMALL = 1e-7


@dataclasses.dataclass(frozen=True)
class Gated(Score):
    """Cosine in the subspace that a gate of the two samples' classes keeps.

    <g x, g y> / (||g x|| ||g y||) with g = own[class of x, class of y], (C, C, d): Hydra (learned
    gates for pairs of classes; "Rethinking positive pairs in contrastive learning", 2024,
    arXiv:2410.18200). Rows and columns are {"z": (n, d), "class": int (n,)}.
    """

    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """The gates (r, c, d) of the tile, then three products weighted by their squares."""
        dtype = wide(row["z"].dtype)
        x, y = (side["z"].astype(dtype) for side in (row, column))
        gate = jnp.square(own.astype(dtype))[row["class"][:, None], column["class"][None, :]]

        def weighted(xs: jax.Array, ys: jax.Array) -> jax.Array:
            return jnp.einsum("rd,cd,rcd->rc", xs, ys, gate, precision=lax.Precision.HIGHEST)

        lengths = weighted(x**2, jnp.ones_like(y)) * weighted(jnp.ones_like(x), y**2)
        return weighted(x, y) * lax.rsqrt(jnp.maximum(lengths, 1e-24))

    def check(self, row: Tree, column: Tree) -> None:
        for name, side in (("x", row), ("y", column)):
            if not isinstance(side, dict) or set(side) != {"z", "class"}:
                raise ValueError(f'{name}: Gated compares {{"z": (n, d), "class": int (n,)}}')
        check_vectors(row["z"], column["z"])

    def block_size(self, row: Tree, column: Tree) -> int:
        """As many pairs as their gates fit."""
        del column
        return _side_of_tile(row["z"].shape[1])


@dataclasses.dataclass(frozen=True)
class Shifted(Score):
    """<row, column> plus a number of each: rows and columns are {"z": (n, d), "shift": (n,)}.

    The shift is not scaled: scores are scale * <x, y> + bias + shifts (optimal transport's
    potentials, logit adjustment by frequency).
    """

    def similarity(self, row: Tree, column: Tree, own: Tree) -> jax.Array:
        """Products in the input dtype, summed in float32 or wider."""
        del own
        return product(row["z"], column["z"], ((1,), (1,)))

    def forward(self, row: Tree, column: Tree, shared: Shared) -> jax.Array:
        """Scores (r, c)."""
        scores = super().forward(row, column, shared)
        a, b = (side["shift"].astype(scores.dtype) for side in (row, column))
        return scores + a[:, None] + b[None, :]

    def check(self, row: Tree, column: Tree) -> None:
        for name, side in (("x", row), ("y", column)):
            if not isinstance(side, dict) or set(side) != {"z", "shift"}:
                raise ValueError(f'{name}: Shifted compares {{"z": (n, d), "shift": (n,)}}')
        check_vectors(row["z"], column["z"])


def tokens(z_bld: jax.Array, mask_bl: jax.Array | None = None) -> dict[str, jax.Array]:
    """What `LateInteraction` compares: token embeddings, and True for those that count.

    z_bld: unit-norm tokens (B, l, d). mask_bl: bool (B, l), None: all count.
    """
    if mask_bl is None:
        mask_bl = jnp.ones(z_bld.shape[:2], jnp.bool_)
    if mask_bl.shape != z_bld.shape[:2] or mask_bl.dtype != jnp.bool_:
        raise ValueError(f"mask_bl {mask_bl.shape} {mask_bl.dtype}: must be bool {z_bld.shape[:2]}")
    return {"z": z_bld, "mask": mask_bl}


def volume_columns(y_bkd: jax.Array, row_weight_b: jax.Array | None = None) -> dict[str, jax.Array]:
    """What `Volume` compares rows with: an orthonormal basis of k vectors, and their volume.

    y_bkd: unit-norm embeddings (B, k, d) of k modalities of each sample, k <= d. row_weight_b: as
    in the loss: samples of weight 0 may hold anything.
    Returns {"basis": (B, k, d), "volume": (B,)}, float32 or wider. Vectors that (nearly) lie in one
    space of fewer dimensions have a volume of about 0 and a basis that is finite.
    """
    dtype = wide(y_bkd.dtype)
    y_bkd = y_bkd.astype(dtype)
    if row_weight_b is not None:
        y_bkd = jnp.where((row_weight_b > 0)[:, None, None], y_bkd, 0.0)
    basis: list[jax.Array] = []
    volume_b = jnp.ones(y_bkd.shape[:1], dtype)
    for i in range(y_bkd.shape[1]):  # modified Gram-Schmidt: stable, and k is small
        rest_bd = y_bkd[:, i]
        for q_bd in basis:
            rest_bd = rest_bd - q_bd * jnp.sum(q_bd * rest_bd, axis=1, keepdims=True)
        height_b = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(rest_bd), axis=1), _SMALL**2))
        basis.append(rest_bd / height_b[:, None])
        volume_b = volume_b * height_b
    return {"basis": jnp.stack(basis, axis=1), "volume": volume_b}


def product(
    a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    """Matrix product in the inputs' dtype; accelerators must not round float32 inputs down."""
    out = wide(a.dtype)
    precision = lax.Precision.HIGHEST if a.dtype == out else lax.Precision.DEFAULT
    dimensions = (contract, ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=out)


def check_vectors(row: Tree, column: Tree) -> None:
    """Raises ValueError unless both are (n, d), of one width and one float dtype."""
    ok = all(isinstance(z, jax.Array) or hasattr(z, "ndim") for z in (row, column))
    if not ok or row.ndim != 2 or column.ndim != 2 or row.shape[1] != column.shape[1]:
        shapes = [getattr(z, "shape", type(z).__name__) for z in (row, column)]
        raise ValueError(f"x {shapes[0]} and y {shapes[1]}: must be two (n, d) of one width")
    if row.dtype != column.dtype or not jnp.issubdtype(row.dtype, jnp.floating):
        raise ValueError(f"x {row.dtype} and y {column.dtype}: must be of one float dtype")


def _side_of_tile(numbers: int) -> int:
    """Side of a square tile whose pairs need so many numbers each."""
    side = math.isqrt(max(_TILE_NUMBERS // numbers, 1))
    return min(BLOCK_SIZE, max(side // 8 * 8, 1))
