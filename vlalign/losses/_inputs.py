"""From the arguments of a contrastive loss to the kernel's: checks, left-out samples, the mesh."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.typing import ArrayLike

from vlalign.losses._forms import Form
from vlalign.losses._pairs import Given, Plan, Route
from vlalign.losses._scores import Score, Shared
from vlalign.losses._tiles import Side, wide

# Mesh axes over which a batch is cut, where the mesh in use has them.
BATCH_AXES = ("data", "fsdp")


class Teacher(NamedTuple):
    """Soft targets: (1 - alpha) * positives + alpha * softmax(scale * <x, y>), tile by tile.

    ALBEF (Li et al. 2021, arXiv:2107.07651, section 3.2): momentum distillation of the contrastive
    targets. No gradient flows into the embeddings and the scale.

    x_bd, y_bd: the teacher's unit-norm embeddings of the rows' and the columns' samples (B, d').
    logit_scale: () the teacher's inverse temperature.
    alpha: () share of the teacher's distribution, 0 to 1.
    extra_qd: (Q, d') the teacher's embeddings of the extra columns, where there are such columns.
    """

    x_bd: jax.Array
    y_bd: jax.Array
    logit_scale: ArrayLike
    alpha: ArrayLike
    extra_qd: jax.Array | None = None


class Extra(NamedTuple):
    """Further columns for the rows: a queue, hard or synthetic negatives.

    z_qd: (Q, d), dtype of the rows; gradients flow into it (stop them for a queue). It is held
    whole on every device.
    valid_q: bool (Q,), False leaves a column out (a queue that is not yet full).
    group_q: integer (Q,), their groups; without it none of them is a positive.
    """

    z_qd: jax.Array
    valid_q: jax.Array | None = None
    group_q: jax.Array | None = None


class Pairs(NamedTuple):
    """The arguments of a contrastive loss, as its docstring names them."""

    x_bd: jax.Array
    y_bd: jax.Array
    logit_scale: ArrayLike
    logit_bias: ArrayLike | None
    row_weight_b: jax.Array | None
    group_b: jax.Array | None
    teacher: Teacher | None
    extra: Extra | None


def check_directions(directions: tuple[float, float], extra: Extra | None) -> None:
    """Raises ValueError for weights of directions that make no loss."""
    if min(directions) < 0 or sum(directions) == 0:
        raise ValueError(
            f"directions={directions}: the weights of (rows, columns), none negative, one positive"
        )
    if extra is not None and directions[0] == 0:
        raise ValueError(
            f"directions={directions} with extra columns: only rows see them, so rows need weight; "
            "swap x_bd and y_bd to give the other side extra columns"
        )


def plan(pairs: Pairs, score: Score, form: Form, block_size: int, route: Route) -> Plan:
    """The kernel's static plan on the mesh in use. Raises ValueError for what does not fit."""
    _check(pairs)
    if block_size < 1:
        raise ValueError(f"block_size={block_size}: must be at least 1")
    if route not in ("gather", "ring"):
        raise ValueError(f'route={route!r}: must be "gather" or "ring"')
    mesh, axes = _mesh(pairs.x_bd.shape[0])
    return Plan(score=score, form=form, block=block_size, mesh=mesh, axes=axes, route=route)


def clean(pairs: Pairs) -> Pairs:
    """Zeroes left-out samples' embeddings (nan * 0 is nan) and stops the teacher's gradient."""
    valid_b = None if pairs.row_weight_b is None else pairs.row_weight_b > 0
    pairs = pairs._replace(x_bd=_zero(pairs.x_bd, valid_b), y_bd=_zero(pairs.y_bd, valid_b))
    valid_q = pairs.extra.valid_q if pairs.extra else None
    if pairs.extra is not None:
        extra = pairs.extra._replace(z_qd=_zero(pairs.extra.z_qd, valid_q))
        pairs = pairs._replace(extra=extra)
    if pairs.teacher is None:
        return pairs
    frozen = jax.lax.stop_gradient(pairs.teacher)
    extra_qd = None if frozen.extra_qd is None else _zero(frozen.extra_qd, valid_q)
    frozen = frozen._replace(
        x_bd=_zero(frozen.x_bd, valid_b), y_bd=_zero(frozen.y_bd, valid_b), extra_qd=extra_qd
    )
    return pairs._replace(teacher=frozen)


def shared(pairs: Pairs) -> Shared:
    """Parameters of the pairs' score."""
    return _scale(pairs.x_bd, pairs.logit_scale, pairs.logit_bias)


def given(pairs: Pairs) -> Given:
    """What of cleaned pairs is not differentiated."""
    weight_b = pairs.row_weight_b
    valid_b = None if weight_b is None else weight_b > 0
    if weight_b is not None:
        weight_b = weight_b.astype(wide(pairs.x_bd.dtype))
    place = jnp.arange(pairs.x_bd.shape[0], dtype=jnp.int32)
    side = Side(place, group=pairs.group_b, valid=valid_b, weight=weight_b)
    extra, teacher = pairs.extra, pairs.teacher
    outside = None
    if extra is not None:
        none = jnp.full(extra.z_qd.shape[:1], -1, jnp.int32)
        outside = Side(none, group=extra.group_q, valid=extra.valid_q)
    if teacher is None:
        return Given(side, side, outside)
    return Given(
        side._replace(soft=teacher.x_bd),
        side._replace(soft=teacher.y_bd),
        None if outside is None else outside._replace(soft=teacher.extra_qd),
        _scale(teacher.x_bd, teacher.logit_scale, None),
    )


def _scale(x_bd: jax.Array, scale: ArrayLike, bias: ArrayLike | None) -> Shared:
    dtype = wide(x_bd.dtype)
    bias = None if bias is None else jnp.asarray(bias).astype(dtype)
    return {"scale": jnp.asarray(scale).astype(dtype), "bias": bias}


def _zero(z: jax.Array, valid: jax.Array | None) -> jax.Array:
    return z if valid is None else jnp.where(valid[:, None], z, jnp.zeros((), z.dtype))


def _mesh(batch: int) -> tuple[AbstractMesh | None, tuple[str, ...]]:
    """The mesh in use and its axes that cut the batch. Raises ValueError if they cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None, ()
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
    return mesh, axes


def _check(pairs: Pairs) -> None:
    """Raises ValueError unless shapes and dtypes fit together."""
    x_bd, y_bd, teacher, extra = pairs.x_bd, pairs.y_bd, pairs.teacher, pairs.extra
    if x_bd.ndim != 2 or x_bd.shape != y_bd.shape or x_bd.shape[0] == 0:
        raise ValueError(
            f"x_bd {x_bd.shape} and y_bd {y_bd.shape}: must be two equal (B, d), B > 0"
        )
    if x_bd.dtype != y_bd.dtype or not jnp.issubdtype(x_bd.dtype, jnp.floating):
        raise ValueError(f"x_bd {x_bd.dtype} and y_bd {y_bd.dtype}: must be of one float dtype")
    batch, dim = x_bd.shape
    _check_shape("row_weight_b", pairs.row_weight_b, (batch,))
    _check_integers("group_b", pairs.group_b, batch)
    for name, scalar in (("logit_scale", pairs.logit_scale), ("logit_bias", pairs.logit_bias)):
        _check_shape(name, None if scalar is None else jnp.asarray(scalar), ())
    if extra is not None:
        _check_extra(extra, dim, x_bd.dtype, pairs.group_b)
    if teacher is not None:
        _check_teacher(teacher, batch, extra)


def _check_extra(extra: Extra, dim: int, dtype: jnp.dtype, group_b: jax.Array | None) -> None:
    length = extra.z_qd.shape[0]
    if extra.z_qd.shape != (length, dim) or length == 0 or extra.z_qd.dtype != dtype:
        raise ValueError(
            f"extra.z_qd {extra.z_qd.shape} {extra.z_qd.dtype}: must be (Q, {dim}) {dtype}, Q > 0"
        )
    _check_shape("extra.valid_q", extra.valid_q, (length,))
    if extra.valid_q is not None and extra.valid_q.dtype != jnp.bool_:
        raise ValueError(f"extra.valid_q {extra.valid_q.dtype}: must be bool")
    _check_integers("extra.group_q", extra.group_q, length)
    if extra.group_q is not None and (group_b is None or group_b.dtype != extra.group_q.dtype):
        raise ValueError("extra.group_q: needs group_b, of the same dtype")


def _check_teacher(teacher: Teacher, batch: int, extra: Extra | None) -> None:
    dim = teacher.x_bd.shape[-1]
    _check_shape("teacher.x_bd", teacher.x_bd, (batch, dim))
    _check_shape("teacher.y_bd", teacher.y_bd, (batch, dim))
    if (teacher.extra_qd is None) != (extra is None):
        raise ValueError("teacher.extra_qd and extra: give both, or neither")
    if extra is not None:
        _check_shape("teacher.extra_qd", teacher.extra_qd, (extra.z_qd.shape[0], dim))
    dtypes = {z.dtype for z in (teacher.x_bd, teacher.y_bd, teacher.extra_qd) if z is not None}
    if len(dtypes) > 1:
        raise ValueError(f"teacher: embeddings of several dtypes: {sorted(map(str, dtypes))}")
    _check_shape("teacher.logit_scale", jnp.asarray(teacher.logit_scale), ())
    _check_shape("teacher.alpha", jnp.asarray(teacher.alpha), ())


def _check_shape(name: str, a: jax.Array | None, shape: tuple[int, ...]) -> None:
    if a is not None and a.shape != shape:
        raise ValueError(f"{name} {a.shape}: must be {shape}")


def _check_integers(name: str, a: jax.Array | None, length: int) -> None:
    _check_shape(name, a, (length,))
    if a is not None and not jnp.issubdtype(a.dtype, jnp.integer):
        raise ValueError(f"{name} {a.dtype}: must be an integer dtype")
