"""From the arguments of a loss over pairs to its statistics: checks, left-out samples, the mesh."""

import dataclasses
import math
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.typing import ArrayLike

from vlalign.losses.inputs import Extra, Options, OtherScores, check_integers, check_shape
from vlalign.losses.kernel.form import AllStats, Form
from vlalign.losses.kernel.plan import Plan, Route
from vlalign.losses.kernel.program import Given, pair_statistics
from vlalign.losses.kernel.sweep import Side, Tree, wide_of
from vlalign.losses.scores import Cosine, Score, Shared

# Mesh axes over which a batch is cut, where the mesh in use has them.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows and columns with `Options`, checked, and with left-out samples emptied: `Pairs.of`.

    teacher: a further matrix of scores for the statistics; learn_teacher: it gets gradients.
    """

    x: Tree
    y: Tree
    logit_scale: ArrayLike
    logit_bias: ArrayLike | None = None
    score: Score = Cosine()
    score_params: Tree = None
    row_weight_b: jax.Array | None = None
    group_b: jax.Array | None = None
    duplicate_b: jax.Array | None = None
    same_items: bool = False
    extra: Extra | None = None
    pair_weight: OtherScores | None = None
    block_size: int | None = None
    route: Route = "gather"
    teacher: OtherScores | None = None
    learn_teacher: bool = False

    @staticmethod
    def of(
        x: Tree,
        y: Tree,
        *,
        teacher: OtherScores | None = None,
        learn_teacher: bool = False,
        **options: Unpack[Options],
    ) -> "Pairs":
        """Raises ValueError for what does not fit together."""
        pairs = Pairs(x=x, y=y, teacher=teacher, learn_teacher=learn_teacher, **options)
        _check(pairs)
        return pairs._clean()

    @property
    def batch(self) -> int:
        """Number of rows."""
        length: int = jax.tree.leaves(self.x)[0].shape[0]
        return length

    @property
    def dtype(self) -> jnp.dtype:
        """What scores are computed in."""
        return wide_of(self.x)

    @property
    def valid_b(self) -> jax.Array | None:
        """Which samples are in; None: all."""
        return None if self.row_weight_b is None else self.row_weight_b > 0

    @property
    def weight_b(self) -> jax.Array:
        """Weight of each sample; what is not above 0 counts as 0."""
        if self.row_weight_b is None:
            return jnp.ones((self.batch,), self.dtype)
        return jnp.where(self.row_weight_b > 0, self.row_weight_b, 0).astype(self.dtype)

    @property
    def shared(self) -> Shared:
        """Parameters of the loss's own score."""
        shared = _scale(self.dtype, self.logit_scale, self.logit_bias)
        return shared | {"own": self.score_params}

    def matched(self, y: Tree = None) -> jax.Array:
        """Scores (B,) of row i with column i, or with row i of another `y`."""
        y = self.y if y is None else _empty(y, self.valid_b)
        return self.score.matched(self.x, y, self.shared)

    def statistics(
        self,
        form: Form,
        *,
        share: jax.Array | None = None,
        floor_b: jax.Array | None = None,
        ceiling_b: jax.Array | None = None,
    ) -> tuple[AllStats, AllStats]:
        """The form's statistics of rows and of columns, (B, ...); {} for a side without any.

        share: a teacher's part in a pair's label. floor_b, ceiling_b: of each sample, as row and as
        column, what its negatives have to score above and below; no gradient flows into them.
        """
        plan = self._plan(form)
        given = self._given(share, floor_b, ceiling_b)
        extra_z = None if self.extra is None else self.extra.z_qd
        others = [("teacher", self.teacher), ("pair_weight", self.pair_weight)]
        x, y, shared = {"score": self.x}, {"score": self.y}, {"score": self.shared}
        extra = None if extra_z is None else {"score": extra_z}
        for name, other in others:
            if other is not None:
                x[name], y[name] = other.x_bd, other.y_bd
                scale = _scale(wide_of(other.x_bd), other.logit_scale, other.logit_bias)
                shared[name] = scale | {"own": None}
                if extra is not None:
                    extra[name] = other.extra_qd
        rows, columns = pair_statistics(plan, x, y, extra, shared, given)
        return rows or {}, columns or {}

    def _plan(self, form: Form) -> Plan:
        mesh, axes, shards = batch_axes(self.batch)
        scores: list[tuple[str, Score]] = [("score", self.score)]
        for name, other in (("teacher", self.teacher), ("pair_weight", self.pair_weight)):
            scores += [] if other is None else [(name, other.score)]
        block = self.block_size
        if block is None:
            columns = [self.y] if self.extra is None else [self.y, self.extra.z_qd]
            block = min(self.score.block_size(self.x, column) for column in columns)
            if len(scores) > 1:  # a tile holds them all
                block = max(block // 2, 1)
        cut = self.extra is not None and _length(self.extra.z_qd) % shards == 0
        return Plan(
            scores=tuple(scores),
            learned=("score", "teacher") if self.learn_teacher else ("score",),
            form=form,
            block=block,
            mesh=mesh,
            axes=axes,
            route=self.route,
            whole_extra=not (cut and axes),
        )

    def _given(
        self, share: jax.Array | None, floor_b: jax.Array | None, ceiling_b: jax.Array | None
    ) -> Given:
        weight_b = None if self.row_weight_b is None else self.weight_b
        side = Side(
            jnp.arange(self.batch, dtype=jnp.int32),
            group=self.group_b,
            key=self.duplicate_b,
            valid=self.valid_b,
            weight=weight_b,
            floor=floor_b,
            ceiling=ceiling_b,
        )
        outside, extra = None, self.extra
        if extra is not None:
            outside = Side(
                self.batch + jnp.arange(_length(extra.z_qd), dtype=jnp.int32),
                group=extra.group_q,
                key=extra.duplicate_q,
                owner=extra.owner_q,
                valid=extra.valid_q,
            )
        return jax.lax.stop_gradient(Given(side, side, outside, share))

    def _clean(self) -> "Pairs":
        """Empties left-out samples (nan * 0 is nan) and stops the other scores' gradients."""
        valid_b, extra = self.valid_b, self.extra
        valid_q = extra.valid_q if extra else None
        if extra is not None:
            extra = dataclasses.replace(extra, z_qd=_empty(extra.z_qd, valid_q))

        def clean(other: OtherScores | None, *, learn: bool) -> OtherScores | None:
            if other is None:
                return None
            other = other if learn else jax.lax.stop_gradient(other)
            return dataclasses.replace(
                other,
                x_bd=_empty(other.x_bd, valid_b),
                y_bd=_empty(other.y_bd, valid_b),
                extra_qd=_empty(other.extra_qd, valid_q),
            )

        return dataclasses.replace(
            self,
            x=_empty(self.x, valid_b),
            y=_empty(self.y, valid_b),
            extra=extra,
            teacher=clean(self.teacher, learn=self.learn_teacher),
            pair_weight=clean(self.pair_weight, learn=False),
        )


def _scale(dtype: jnp.dtype, scale: ArrayLike, bias: ArrayLike | None) -> Shared:
    bias = None if bias is None else jnp.asarray(bias).astype(dtype)
    return {"scale": jnp.asarray(scale).astype(dtype), "bias": bias}


def _length(z: Tree) -> int:
    length: int = jax.tree.leaves(z)[0].shape[0]
    return length


def _empty(z: Tree, valid: jax.Array | None) -> Tree:
    def empty(a: jax.Array) -> jax.Array:
        mask = jnp.expand_dims(valid, tuple(range(1, a.ndim)))  # type: ignore[arg-type]
        return jnp.where(mask, a, jnp.zeros((), a.dtype))

    return z if valid is None else jax.tree.map(empty, z)


def batch_axes(batch: int) -> tuple[AbstractMesh | None, tuple[str, ...], int]:
    """The mesh in use, its axes that cut the batch, in how many parts. Raises if they cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None, (), 1
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if other := {name: str(kind) for name, kind in types.items() if kind != AxisType.Auto}:
        raise ValueError(
            "contrastive losses need a mesh of AxisType.Auto axes, and a call outside shard_map; "
            f"got {other}"
        )
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if batch % shards:
        sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
        raise ValueError(
            f"a batch of {batch} does not divide over the mesh ({sizes}): use a multiple of "
            f"{shards}, filling up with samples of row_weight_b = 0"
        )
    return mesh, axes, shards


def _check(pairs: Pairs) -> None:
    """Raises ValueError unless shapes and dtypes fit together."""
    leaves = jax.tree.leaves((pairs.x, pairs.y))
    lengths = {a.shape[0] if a.ndim else 0 for a in leaves}
    if len(lengths) != 1 or lengths == {0}:
        shapes = [jax.tree.map(lambda a: a.shape, z) for z in (pairs.x, pairs.y)]
        raise ValueError(f"x {shapes[0]} and y {shapes[1]}: must be of one batch (B, ...), B > 0")
    pairs.score.check(pairs.x, pairs.y)
    batch = pairs.batch
    check_shape("row_weight_b", pairs.row_weight_b, (batch,))
    check_integers("group_b", pairs.group_b, batch)
    check_integers("duplicate_b", pairs.duplicate_b, batch)
    for name, scalar in (("logit_scale", pairs.logit_scale), ("logit_bias", pairs.logit_bias)):
        check_shape(name, None if scalar is None else jnp.asarray(scalar), ())
    if pairs.same_items and pairs.group_b is None:
        raise ValueError("same_items: needs group_b, which says which items are positives")
    if pairs.block_size is not None and pairs.block_size < 1:
        raise ValueError(f"block_size={pairs.block_size}: must be at least 1")
    if pairs.route not in ("gather", "ring"):
        raise ValueError(f'route={pairs.route!r}: must be "gather" or "ring"')
    if pairs.extra is not None:
        _check_extra(pairs.extra, pairs)
    for name, other in (("teacher", pairs.teacher), ("pair_weight", pairs.pair_weight)):
        if other is not None:
            _check_other(name, other, batch, pairs.extra)


def _check_extra(extra: Extra, pairs: Pairs) -> None:
    if not all(a.ndim and a.shape[0] for a in jax.tree.leaves(extra.z_qd)):
        raise ValueError("extra.z_qd: must be (Q, ...), Q > 0")
    try:
        pairs.score.check(pairs.x, extra.z_qd)
    except ValueError as error:
        raise ValueError(f"extra.z_qd as y: {error}") from None
    length = _length(extra.z_qd)
    check_shape("extra.valid_q", extra.valid_q, (length,))
    if extra.valid_q is not None and extra.valid_q.dtype != jnp.bool_:
        raise ValueError(f"extra.valid_q {extra.valid_q.dtype}: must be bool")
    check_integers("extra.owner_q", extra.owner_q, length)
    for name, theirs, ours in (
        ("group", extra.group_q, pairs.group_b),
        ("duplicate", extra.duplicate_q, pairs.duplicate_b),
    ):
        check_integers(f"extra.{name}_q", theirs, length)
        if theirs is not None and (ours is None or ours.dtype != theirs.dtype):
            raise ValueError(f"extra.{name}_q: needs {name}_b, of the same dtype")


def _check_other(name: str, other: OtherScores, batch: int, extra: Extra | None) -> None:
    if (other.extra_qd is None) != (extra is None):
        raise ValueError(f"{name}.extra_qd and extra: give both, or neither")
    lengths = {"x_bd": batch, "y_bd": batch, "extra_qd": _length(extra.z_qd) if extra else 0}
    for field, length in lengths.items():
        for a in jax.tree.leaves(getattr(other, field)):
            if a.ndim == 0 or a.shape[0] != length:
                raise ValueError(f"{name}.{field} {a.shape}: must be ({length}, ...)")
    for z in (other.y_bd, other.extra_qd):
        if z is not None:
            try:
                other.score.check(other.x_bd, z)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    check_shape(f"{name}.logit_scale", jnp.asarray(other.logit_scale), ())
