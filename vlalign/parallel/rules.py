"""From the names of parameter axes to mesh axes: one typed table, and the checks around it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax.core import meta
from flax.linen import LogicallyPartitioned
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlalign.errors import UserError, nearest

Axis = Literal["data", "fsdp", "tensor"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisRules:
    """Which mesh axis cuts each named parameter axis; None leaves it whole.

    embed: width of the residual stream.   mlp: hidden units of a feed-forward layer.
    heads: attention heads.                head_dim: width of one head.
    vocab: rows of the token table.        joint: width of the shared image-text space.
    length: positions.                     patch: pixels of a patch.
    layers: the leading axis of a scanned stack.   qkv: the query/key/value axis.
    """

    embed: Axis = "fsdp"
    mlp: Axis = "tensor"
    heads: Axis = "tensor"
    head_dim: Axis = None
    vocab: Axis = "tensor"
    joint: Axis = None
    length: Axis = None
    patch: Axis = None
    layers: Axis = None
    qkv: Axis = None

    def spec(
        self, path: str, shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh
    ) -> PartitionSpec:
        """The partition of one parameter. Raises UserError naming path, axis, size and remedy."""
        cut: list[str | None] = []
        for size, name in zip(shape, names, strict=True):
            axis = self._axis(path, name)
            if axis is None or mesh.shape[axis] == 1:
                cut.append(None)
                continue
            if axis in cut:
                raise UserError(
                    f"{path} {shape} {names}: the rules cut two of its axes over mesh axis "
                    f"'{axis}'; set one of them to none (rules.{name}=none)"
                )
            if size % mesh.shape[axis]:
                raise UserError(
                    f"{path} {shape}: axis '{name}' of size {size} does not divide over mesh axis "
                    f"'{axis}' of size {mesh.shape[axis]}; change the size, the mesh, or set "
                    f"rules.{name}=none"
                )
            cut.append(axis)
        return PartitionSpec(*cut)

    def _axis(self, path: str, name: str | None) -> Axis:
        if name is None:
            return None
        names = [field.name for field in dataclasses.fields(self)]
        if name not in names:
            raise UserError(f"{path}: no rule for parameter axis '{name}'{nearest(name, names)}")
        axis: Axis = getattr(self, name)
        return axis


def path_str(path: tuple[Any, ...]) -> str:
    """A key path of a pytree as `image/blocks/mlp/up/kernel`."""
    parts = []
    for key in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return "/".join(parts)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, meta.AxisMetadata)


def axis_names(boxed: Any) -> dict[str, tuple[str | None, ...]]:
    """Parameter path -> axis names, from a (possibly abstract) tree as `init` returns it."""
    flat, _ = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_box)
    table: dict[str, tuple[str | None, ...]] = {}
    for path, leaf in flat:
        if isinstance(leaf, LogicallyPartitioned):
            table[path_str(path)] = tuple(leaf.names)
        else:
            table[path_str(path)] = (None,) * len(leaf.shape)
    return table


def tree_shardings(
    tree: Any, names: Mapping[str, tuple[str | None, ...]], rules: AxisRules, mesh: Mesh
) -> Any:
    """Shardings for any tree whose leaves are parameters or follow them (optimiser state, EMA).

    A leaf follows a parameter if its path ends in that parameter's path and the ranks agree: the
    first moment `opt_state/0/mu/image/pos` is laid out like `image/pos`. All others (counters,
    queues) are whole on every device. tree: arrays or ShapeDtypeStructs, unboxed.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = path_str(path).split("/")
        for start in range(len(parts)):
            axes = names.get("/".join(parts[start:]))
            if axes is not None and len(axes) == len(leaf.shape):
                spec = rules.spec("/".join(parts), tuple(leaf.shape), axes, mesh)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def check_sharded(params: Any, mesh: Mesh, *, tolerance: float = 0.02) -> None:
    """Raises if over `tolerance` of the parameter bytes lie whole on every device of `fsdp`.

    A rule or a name lost on the way leaves parameters replicated without any error; on a pod that
    is found as an out-of-memory hours later. params: arrays with their real shardings.
    """
    if mesh.shape["fsdp"] == 1:
        return
    whole, total, paths = 0, 0, []
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        total += size
        if leaf.sharding.is_fully_replicated:
            whole += size
            paths.append(path_str(path))
    if whole > tolerance * total:
        raise UserError(
            f"{whole / total:.0%} of the parameter bytes are whole on every device of a mesh with "
            f"fsdp={mesh.shape['fsdp']} (limit {tolerance:.0%}); first of them: {paths[:5]}; "
            "check the rules (rules.embed=fsdp cuts the usual ones)"
        )
