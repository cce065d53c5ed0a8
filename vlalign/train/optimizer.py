"""From configuration to an optax chain: groups by path, clipping, decay, schedule."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from vlalign.errors import UserError
from vlalign.parallel.rules import path_str
from vlalign.train.schedule import Cosine, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """What differs for the parameters whose whole path matches a regular expression.

    path: as in `image/transformer/.*`; `vlalign show` lists the paths.
    learning_rate: multiple of the rate.   decay: whether weight decay applies (None: the default,
    matrices yes, vectors, positions and scales no).   freeze: never changed; no gradient, no
    optimiser state.
    """

    path: str
    learning_rate: float = 1.0
    decay: bool | None = None
    freeze: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How parameters move.

    kind: "adamw", "lion", "sgd" (with momentum b1), or "muon" (Jordan et al. 2024): orthogonalised
    momentum b1 for the matrices within the blocks, scaled to the size of an Adam update (Liu et al.
    2025, "Muon is scalable", section 2.2), and Adam, with b1 and b2, for everything else.
    learning_rate: peak.   schedule: its course.   b1, b2, epsilon: of the moments.
    weight_decay: decoupled, times the learning rate.   clip_norm: of the global gradient norm;
    None: no clipping.   groups: exceptions by path; the first that matches counts, and each must
    match something.   moment_dtype: in which the first moment (the momentum) is stored between
    steps. A step reads it as float32, computes moment and update in float32, and rounds what it
    stores; the second moment is always float32.
    """

    kind: Literal["adamw", "lion", "sgd", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Schedule = dataclasses.field(default_factory=Cosine)
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    groups: tuple[Group, ...] = ()
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def group_of(self, paths: list[str]) -> dict[str, Group]:
        """Path -> its group. Raises UserError for a group that matches nothing."""
        table, used = {}, set()
        for path in paths:
            for group in self.groups:
                if re.fullmatch(group.path, path):
                    table[path] = group
                    used.add(group.path)
                    break
        for group in self.groups:
            if group.path not in used:
                raise UserError(
                    f"optimizer.groups: `{group.path}` matches no parameter that an earlier group "
                    f"left over; paths are like {paths[0]}, {paths[-1]}"
                )
        return table

    def trainable(self, params: Any) -> Any:
        """A tree of bools like `params`: False where a group freezes."""
        paths = [path_str(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        groups = self.group_of(paths)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not (path_str(path) in groups and groups[path_str(path)].freeze), params
        )

    def rate(self, step: jax.Array, steps: int) -> jax.Array:
        """Learning rate at a step, () float32."""
        return jnp.asarray(self.learning_rate * self.schedule(step, steps), jnp.float32)

    def build(
        self, names: Mapping[str, tuple[str | None, ...]], steps: int
    ) -> optax.GradientTransformation:
        """The optax chain. names: parameter path -> axis names (all of them, frozen too)."""
        groups = self.group_of(list(names))
        default = Group(path="")

        def multiples(tree: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: groups.get(path_str(path), default).learning_rate, tree
            )

        def decays(tree: Any) -> Any:
            def one(path: tuple[Any, ...], _: Any) -> bool:
                key = path_str(path)
                chosen = groups.get(key, default).decay
                return _decays(key, names[key]) if chosen is None else chosen

            return jax.tree_util.tree_map_with_path(one, tree)

        def scale_groups(updates: Any, params: Any) -> Any:
            del params
            return jax.tree.map(lambda u, m: u if m == 1.0 else u * m, updates, multiples(updates))

        chain = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        chain += [self._moments(names)]
        if self.weight_decay:
            chain += [optax.add_decayed_weights(self.weight_decay, mask=decays)]
        if any(group.learning_rate != 1.0 for group in self.groups):
            chain += [optax.stateless(scale_groups)]
        chain += [optax.scale_by_learning_rate(lambda step: self.rate(step, steps))]
        return optax.chain(*chain)

    def _moments(self, names: Mapping[str, tuple[str | None, ...]]) -> optax.GradientTransformation:
        def adam() -> optax.GradientTransformation:
            return stored(optax.scale_by_adam(self.b1, self.b2, self.epsilon), self.moment_dtype)

        if self.kind == "muon":
            return optax.partition(
                {"matrix": muon(names, self.b1, self.moment_dtype), "rest": adam()},
                lambda tree: jax.tree_util.tree_map_with_path(
                    lambda path, _: "matrix" if _sides(names[path_str(path)]) else "rest", tree
                ),
            )
        if self.kind == "adamw":
            return adam()
        if self.kind == "lion":
            return stored(optax.scale_by_lion(self.b1, self.b2), self.moment_dtype)
        return stored(optax.trace(self.b1), self.moment_dtype)


def stored(tx: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`tx` with its first moment (its state's `mu` or `trace`) kept in `dtype` between updates.

    optax's own `mu_dtype` multiplies the stored moment by its decay before it widens it.
    """

    def cast(state: Any, dtype: str) -> Any:
        name = "trace" if isinstance(state, optax.TraceState) else "mu"
        return state._replace(**{name: optax.tree.cast(getattr(state, name), dtype)})

    def init(params: Any) -> Any:
        return cast(tx.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = tx.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def muon(
    names: Mapping[str, tuple[str | None, ...]], beta: float, dtype: str
) -> optax.GradientTransformation:
    """Orthogonalised momentum of matrices, each update with the root mean square 0.2 of Adam's.

    names: parameter path -> axis names, from which each matrix's inputs and outputs follow.
    dtype: of the stored momentum.
    """

    def dimensions(tree: Any) -> Any:
        def one(path: tuple[Any, ...], _: Any) -> optax.contrib.MuonDimensionNumbers:
            sides = _sides(names[path_str(path)])
            assert sides is not None, path
            return optax.contrib.MuonDimensionNumbers(*sides)

        return jax.tree_util.tree_map_with_path(one, tree)

    def rescale(updates: Any, params: Any) -> Any:
        del params

        def one(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            sides = _sides(names[path_str(path)])
            assert sides is not None, path
            longest = max(math.prod(update.shape[axis] for axis in side) for side in sides)
            return update * (0.2 * math.sqrt(longest))

        return jax.tree_util.tree_map_with_path(one, updates)

    momentum = optax.contrib.scale_by_muon(beta=beta, weight_dimension_numbers=dimensions)
    return optax.chain(stored(momentum, dtype), optax.stateless(rescale))


# Matrices side by side in one array, each orthogonalised on its own.
_STACKING = ("layers", "qkv")


def _sides(names: tuple[str | None, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Axes of the inputs and of the outputs of a matrix within a block; None for anything else."""
    axes = [axis for axis, name in enumerate(names) if name not in _STACKING]
    inner = [axis for axis in axes if names[axis] in ("mlp", "heads", "head_dim")]
    outer = [axis for axis in axes if names[axis] == "embed"]
    if len(outer) != 1 or not inner or len(inner) + 1 != len(axes):
        return None
    return ((outer[0],), tuple(inner)) if outer[0] < inner[0] else (tuple(inner), (outer[0],))


def _decays(path: str, names: tuple[str | None, ...]) -> bool:
    """The default: matrices decay; biases, norms, positions, tokens of their own, scales do not."""
    matrix = len([name for name in names if name != "layers"]) > 1
    return matrix and path.rpartition("/")[2] == "kernel" and not path.startswith("objectives/")


def split(params: Any, trainable: Any) -> tuple[Any, Any]:
    """(trained, frozen) trees with None in the other's places."""
    trained = jax.tree.map(lambda p, t: p if t else None, params, trainable)
    frozen = jax.tree.map(lambda p, t: None if t else p, params, trainable)
    return trained, frozen


def merge(trained: Any, frozen: Any) -> Any:
    """The one tree that `split` took apart."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
    )
