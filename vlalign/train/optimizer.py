"""From configuration to an optax chain: groups by path, clipping, decay, schedule."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

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

    kind: "adamw", "lion" or "sgd" (with momentum b1).
    learning_rate: peak.   schedule: its course.   b1, b2, epsilon: of the moments.
    weight_decay: decoupled, times the learning rate.   clip_norm: of the global gradient norm;
    None: no clipping.   groups: exceptions by path; the first that matches counts, and each must
    match something.
    """

    kind: Literal["adamw", "lion", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Schedule = dataclasses.field(default_factory=Cosine)
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    groups: tuple[Group, ...] = ()

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
        chain += [self._moments()]
        if self.weight_decay:
            chain += [optax.add_decayed_weights(self.weight_decay, mask=decays)]
        if any(group.learning_rate != 1.0 for group in self.groups):
            chain += [optax.stateless(scale_groups)]
        chain += [optax.scale_by_learning_rate(lambda step: self.rate(step, steps))]
        return optax.chain(*chain)

    def _moments(self) -> optax.GradientTransformation:
        if self.kind == "adamw":
            return optax.scale_by_adam(self.b1, self.b2, self.epsilon)
        if self.kind == "lion":
            return optax.scale_by_lion(self.b1, self.b2)
        return optax.trace(self.b1)


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
