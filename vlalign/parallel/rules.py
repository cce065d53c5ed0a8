"""From the names of parameter axes to mesh axes: one typed table, and the checks around it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
from flax.core import meta
from flax.linen import LogicallyPartitioned
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlalign.errors import UserError, nearest

Axis = Literal["auto", "fsdp", "tensor"] | None

# Elements below which a parameter stays whole: to gather so few costs a latency, and saves nothing.
SMALL = 2**14


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisRules:
    """What may cut each named parameter axis.

    "tensor" or "fsdp": that mesh axis, always.   "auto": nothing but the default below.
    None: nothing, ever.
    The default: a parameter that no rule cuts over `fsdp` is cut over it along its largest axis
    that divides, among those that no mesh axis cuts and no rule forbids. An axis without a name is
    "auto". A parameter of fewer than `whole_below` elements a layer stays whole.

    embed: width of the residual stream.   mlp: hidden units of a feed-forward layer.
    heads: attention heads.                head_dim: width of one head.
    vocab: rows of the token table.        joint: width of the shared image-text space.
    length: positions.                     patch: pixels of a patch.
    layers: the leading axis of a scanned stack.   qkv: the query/key/value axis.
    """

    embed: Axis = "auto"
    mlp: Axis = "tensor"
    heads: Axis = "tensor"
    head_dim: Axis = "auto"
    vocab: Axis = "tensor"
    joint: Axis = "auto"
    length: Axis = "auto"
    patch: Axis = "auto"
    layers: Axis = None
    qkv: Axis = None
    whole_below: int = SMALL

    def spec(
        self, path: str, shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh
    ) -> PartitionSpec:
        """The partition of one parameter. Raises UserError naming path, axis, size and remedy."""
        rules = [self._rule(path, name) for name in names]
        cut: list[str | None] = []
        for size, name, rule in zip(shape, names, rules, strict=True):
            if rule is None or rule == "auto" or mesh.shape[rule] == 1:
                cut.append(None)
                continue
            if rule in cut:
                raise UserError(
                    f"{path} {shape} {names}: the rules cut two of its axes over mesh axis "
                    f"'{rule}'; set one of them to none (rules.{name}=none)"
                )
            if size % mesh.shape[rule]:
                raise UserError(
                    f"{path} {shape}: axis '{name}' of size {size} does not divide over mesh axis "
                    f"'{rule}' of size {mesh.shape[rule]}; change the size, the mesh, or set "
                    f"rules.{name}=none"
                )
            cut.append(rule)
        a_layer = math.prod(n for n, name in zip(shape, names, strict=True) if name != "layers")
        if mesh.shape["fsdp"] > 1 and "fsdp" not in cut and a_layer >= self.whole_below:
            free = [i for i, rule in enumerate(rules) if rule is not None and cut[i] is None]
            if free:
                cut[_largest(path, shape, names, free, mesh.shape["fsdp"])] = "fsdp"
        return PartitionSpec(*cut)

    def _rule(self, path: str, name: str | None) -> Axis:
        if name is None:
            return "auto"
        names = [field.name for field in dataclasses.fields(self) if field.name != "whole_below"]
        if name not in names:
            raise UserError(f"{path}: no rule for parameter axis '{name}'{nearest(name, names)}")
        axis: Axis = getattr(self, name)
        return axis


def _largest(
    path: str, shape: tuple[int, ...], names: tuple[str | None, ...], free: list[int], fsdp: int
) -> int:
    """The largest of the axes `free` that divides over `fsdp`, the first of equal ones."""
    divides = [axis for axis in free if shape[axis] % fsdp == 0]
    if not divides:
        sizes = ", ".join(f"'{names[axis]}' of size {shape[axis]}" for axis in free)
        raise UserError(
            f"{path} {shape}: none of {sizes} divides over mesh axis 'fsdp' of size {fsdp}; "
            f"change a size or the mesh, or leave it whole on every device with "
            f"rules.whole_below={math.prod(shape) + 1}"
        )
    return max(divides, key=lambda axis: shape[axis])


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

    Rules that forbid too much, or a name lost on the way, leave parameters replicated without any
    error; on a pod that is found as an out-of-memory hours later. Small parameters do not count.
    params: arrays with their real shardings.
    """
    if mesh.shape["fsdp"] == 1:
        return
    whole, total, paths = 0, 0, []
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        if leaf.size >= SMALL and not _is_cut(leaf.sharding, "fsdp"):
            whole += size
            paths.append(path_str(path))
    if whole > tolerance * total:
        raise UserError(
            f"{whole / total:.0%} of the parameter bytes are whole on every device of a mesh with "
            f"fsdp={mesh.shape['fsdp']} (limit {tolerance:.0%}); first of them: {paths[:5]}; "
            'check the rules ("auto" lets fsdp cut an axis, none forbids it)'
        )


def _is_cut(sharding: NamedSharding, axis: str) -> bool:
    return any(axis in ((cut,) if isinstance(cut, str) else cut or ()) for cut in sharding.spec)
