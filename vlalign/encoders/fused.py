"""Attention in one kernel on TPU: the weights of a head never leave the chip's own memory.

For the sequences of image towers: all weights of a head fit there at once, so the softmax needs no
running sums (those of Dao et al. 2022, arXiv:2205.14135, are for longer ones). The kernels read
queries, keys and values as the projections leave them, heads side by side, and write the results
the same way: nothing is laid out anew.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

from vlalign.parallel.constraint import batch_axes

# Of shorter sequences the weights are small beside the rest; those of longer ones do not fit.
SHORTEST, LONGEST = 128, 1088
LANES = 128
TENSOR = "tensor"  # the mesh axis that cuts the heads (`parallel/rules.py`)
_MEMORY = 96 * 2**20  # bytes that a kernel may use of a core's own memory

_Arrays = tuple[jax.Array, ...]


def applies(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> bool:
    """Whether `fused_attend` takes these: no mask, a fitting length, a mesh of TPUs.

    q: (b, l, h, k); k: (b, s, h, k).
    """
    lengths = q.shape[1], k.shape[1]
    return mask is None and min(lengths) >= SHORTEST and max(lengths) <= LONGEST and _on_tpu()


def _on_tpu() -> bool:
    """Of v5 or later: the cores of those before have a sixth of the memory that is wanted here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or device.platform != "tpu":
        return False
    return not device.device_kind.startswith(("TPU v2", "TPU v3", "TPU v4"))


def fused_attend(q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v with the softmax in float32: `attend` without a mask.

    q: (b, l, h, k); k, v: (b, s, h, k) -> (b, l, h, k), each device its own rows and heads.
    interpret: run the kernels as plain operations, on any platform.
    """
    # Found here, not in the derivative, which is made when what maps over axes has been left.
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = frozenset(axis for axis, kind in types.items() if kind == AxisType.Auto)
    rows = batch_axes()
    if q.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = ()
    cut = TENSOR in free and q.shape[2] % mesh.shape[TENSOR] == 0
    spec = PartitionSpec(rows or None, None, TENSOR if cut else None)
    return _attention(q, k, v, _Place(free, spec, interpret))


@dataclasses.dataclass(frozen=True)
class _Place:
    """axes: of the mesh, to be mapped over.   spec: how they cut (b, l, h, k)."""

    axes: frozenset[str]
    spec: PartitionSpec
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnames=("place",))
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, place: _Place) -> jax.Array:
    return _mapped(_forward, (q, k, v), 1, place)[0]


def _keep(q: jax.Array, k: jax.Array, v: jax.Array, place: _Place) -> tuple[jax.Array, _Arrays]:
    return _attention(q, k, v, place), (q, k, v)


def _derive(place: _Place, kept: _Arrays, by_out: jax.Array) -> _Arrays:
    return _mapped(_backward, (*kept, by_out), 3, place)


_attention.defvjp(_keep, _derive)


def _mapped(body: Any, arrays: _Arrays, outputs: int, place: _Place) -> _Arrays:
    """`_call` by each device for its part: the compiler cannot cut a kernel."""
    call = functools.partial(_call, body, outputs, place.interpret)
    if not place.axes:  # no mesh, or all of it is mapped over around here
        return call(*arrays)
    # A kernel cannot say that what it returns varies over the mesh as its inputs do.
    parts: _Arrays = jax.shard_map(
        call,
        in_specs=(place.spec,) * len(arrays),
        out_specs=(place.spec,) * outputs,
        axis_names=set(place.axes),
        check_vma=False,
    )(*arrays)
    return parts


def _call(body: Any, outputs: int, interpret: bool, *arrays: jax.Array) -> _Arrays:
    """Runs a kernel for each row and group of heads; the first `outputs` arrays shape the results.

    arrays: (b, l or s, h, k).
    """
    b, l, h, width = arrays[0].shape
    s = arrays[1].shape[1]
    group = _group(h, width)
    flat = [x.reshape(*x.shape[:2], h * width) for x in arrays]

    def block(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, x.shape[1], group * width), lambda row, part: (row, 0, part))

    cost = pl.CostEstimate(
        flops=2 * (2 if outputs == 1 else 5) * b * h * l * s * width,
        transcendentals=b * h * l * s,
        bytes_accessed=sum(x.nbytes for x in (*flat, *flat[:outputs])),
    )
    found = pl.pallas_call(
        functools.partial(body, width=width),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat[:outputs]],
        grid=(b, h // group),
        in_specs=[block(x) for x in flat],
        out_specs=[block(x) for x in flat[:outputs]],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_MEMORY
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=f"attention{body.__name__}",
    )(*flat)
    return tuple(y.reshape(x.shape) for y, x in zip(found, arrays[:outputs], strict=True))


def _group(heads: int, width: int) -> int:
    """Heads read at once: the fewest whose columns fill lanes to the full, or all of them."""
    for group in range(1, heads):
        if heads % group == 0 and group * width % LANES == 0:
            return group
    return heads


def _weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """(l, s) float32: softmax(q k^T / sqrt(k)) of one head."""
    scores = _product(q, k, 1, 1) * q.shape[-1] ** -0.5
    raised = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return raised / jnp.sum(raised, axis=1, keepdims=True)


def _product(x: jax.Array, y: jax.Array, left: int, right: int) -> jax.Array:
    """The float32 product of two matrices over an axis of each."""
    return jax.lax.dot_general(
        x, y, (((left,), (right,)), ((), ())), preferred_element_type=jnp.float32
    )


def _forward(q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, *, width: int) -> None:
    for start in range(0, q_ref.shape[2], width):
        head = slice(start, start + width)
        v = v_ref[0, :, head]
        weights = _weights(q_ref[0, :, head], k_ref[0, :, head]).astype(v.dtype)
        out_ref[0, :, head] = _product(weights, v, 1, 0).astype(out_ref.dtype)


def _backward(
    q_ref: Any, k_ref: Any, v_ref: Any, by_out_ref: Any, *by_refs: Any, width: int
) -> None:
    """With out = P v and P = softmax(S): dv = P^T do, dS = P (do v^T - rowsum(P do v^T))."""
    by_q_ref, by_k_ref, by_v_ref = by_refs
    for start in range(0, q_ref.shape[2], width):
        head = slice(start, start + width)
        q, k, v, by_out = (r[0, :, head] for r in (q_ref, k_ref, v_ref, by_out_ref))
        weights = _weights(q, k)
        by_v_ref[0, :, head] = _product(weights.astype(v.dtype), by_out, 0, 0).astype(v.dtype)
        by_weights = _product(by_out, v, 1, 1)
        mean = jnp.sum(weights * by_weights, axis=1, keepdims=True)
        by_scores = (weights * (by_weights - mean) * width**-0.5).astype(q.dtype)
        by_q_ref[0, :, head] = _product(by_scores, k, 1, 0).astype(q.dtype)
        by_k_ref[0, :, head] = _product(by_scores, q, 0, 0).astype(k.dtype)
