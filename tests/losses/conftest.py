"""Contrastive losses as cases: random inputs, our form of them, and the dense form in float64."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.losses import reference
from vlalign.losses.contrast import Extra, Teacher, sigmoid_contrast, softmax_contrast
from vlalign.losses.loss import Loss

Arrays = dict[str, Any]
QUICK: dict[str, Any] = {"compiler_options": {"xla_backend_optimization_level": 0}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A variant of the loss. The fields name the arguments it uses."""

    name: str
    sigmoid: bool = False
    directions: tuple[float, float] = (0.5, 0.5)
    weight: bool = False
    group: bool = False
    teacher: bool = False
    extra: int = 0
    extra_valid: bool = False
    extra_group: bool = False

    def inputs(self, batch: int, dim: int, scale: float, seed: int = 0) -> tuple[Arrays, Arrays]:
        """What gets gradients, and the rest, as float32, integer and bool numpy arrays."""
        rng = np.random.default_rng(seed)

        def unit(n: int, d: int = dim) -> np.ndarray:
            z = rng.normal(size=(n, d))
            return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)

        arrays: Arrays = {"x": unit(batch), "y": unit(batch), "scale": np.float32(scale)}
        given: Arrays = {}
        if self.sigmoid:
            arrays["bias"] = np.float32(-0.1 * scale)
        if self.extra:
            arrays["extra"] = unit(self.extra)
        if self.weight:
            choices = np.asarray([0.0, 0.5, 1.0, 3.0], np.float32)
            given["weight"] = rng.choice(choices, size=batch)
            given["weight"][0] = 1.0
        if self.group:
            given["group"] = rng.integers(0, max(batch // 2, 1), size=batch, dtype=np.int32)
        if self.teacher:
            given["teacher"] = (unit(batch, 5), unit(batch, 5), np.float32(7.0), np.float32(0.4))
            given["teacher_extra"] = unit(self.extra, 5) if self.extra else None
        if self.extra_valid:
            given["extra_valid"] = rng.random(self.extra) < 0.5
        if self.extra_group:
            given["extra_group"] = rng.integers(0, batch, size=self.extra, dtype=np.int32)
        return arrays, given

    def ours(self, arrays: Arrays, given: Arrays, **options: Any) -> Loss:
        """The loss under test."""
        extra = None
        if self.extra:
            extra = Extra(arrays["extra"], given.get("extra_valid"), given.get("extra_group"))
        shared = {
            "logit_scale": arrays["scale"],
            "row_weight_b": given.get("weight"),
            "group_b": given.get("group"),
            "extra": extra,
        }
        if self.sigmoid:
            bias = arrays["bias"]
            return sigmoid_contrast(arrays["x"], arrays["y"], logit_bias=bias, **shared, **options)
        teacher = None
        if self.teacher:
            u, v, scale, alpha = given["teacher"]
            teacher = Teacher(u, v, scale, alpha=alpha, extra_qd=given["teacher_extra"])
        return softmax_contrast(
            arrays["x"],
            arrays["y"],
            teacher=teacher,
            directions=self.directions,
            **shared,
            **options,
        )

    def dense(self, arrays: Arrays, given: Arrays) -> jax.Array:
        """Mean of the dense form; left-out samples are cut away rather than masked."""
        weight = given.get("weight", np.ones(len(arrays["x"])))
        keep = np.flatnonzero(weight)
        keep_q = np.flatnonzero(given.get("extra_valid", np.ones(self.extra, bool)))
        x, y, weight = arrays["x"][keep], arrays["y"][keep], jnp.asarray(weight[keep], jnp.float64)
        columns = jnp.concatenate([y, arrays["extra"][keep_q]]) if self.extra else y
        group = given.get("group", np.arange(len(arrays["x"]), dtype=np.int32))[keep]
        outside = given.get("extra_group", -1 - np.arange(self.extra))[keep_q].astype(group.dtype)
        all_groups = np.concatenate([group, outside])
        if self.sigmoid:
            weights = 0.5 * (weight[:, None] + weight[None, :])
            weights = jnp.concatenate(
                [weights, jnp.tile(weight[:, None], (1, len(keep_q)))], axis=1
            )
            scores = reference.cosine(x, columns, arrays["scale"]) + arrays["bias"]
            label = (group[:, None] == all_groups[None, :]).astype(np.float64)
            return reference.sigmoid_dense(scores, label, weights)[0] / jnp.sum(weight)
        sides = ((x, columns, group, all_groups), (y, x, group, group))
        total = jnp.zeros((), jnp.float64)
        for side, (share, (a, b, mine, theirs)) in enumerate(
            zip(self.directions, sides, strict=True)
        ):
            target = reference.uniform_target(jnp.asarray(mine), jnp.asarray(theirs), a.dtype)
            if self.teacher:
                target = self._distilled(target, given, keep, keep_q, side)
            scores = reference.cosine(a, b, arrays["scale"])
            total += share * reference.softmax_dense(scores, target, weight)[0]
        return total / jnp.sum(weight)

    def _distilled(
        self, target: jax.Array, given: Arrays, keep: np.ndarray, keep_q: np.ndarray, side: int
    ) -> jax.Array:
        u, v, scale, alpha = (jnp.asarray(a, jnp.float64) for a in given["teacher"])
        u, v = u[keep], v[keep]
        if side == 1:
            u, v = v, u
        elif self.extra:
            more = jnp.asarray(given["teacher_extra"], jnp.float64)[keep_q]
            v = jnp.concatenate([v, more])
        return reference.distilled_target(target, reference.cosine(u, v, scale), alpha)

    def expected(self, arrays: Arrays, given: Arrays) -> tuple[float, Arrays]:
        """Value and gradients in float64."""
        with jax.enable_x64(True):
            wide = {name: jnp.asarray(a, jnp.float64) for name, a in arrays.items()}
            step = jax.jit(jax.value_and_grad(lambda a: self.dense(a, given)), **QUICK)
            return jax.tree.map(np.asarray, step(wide))

    def found(
        self,
        arrays: Arrays,
        given: Arrays,
        *,
        mesh: tuple[int, ...] = (),
        quick: bool = True,
        **options: Any,
    ) -> tuple[Any, Arrays]:
        """Value and gradients of ours, compiled once for a mesh (which the caller sets).

        quick: compile in half the time, for programs that run once.
        """
        step = _compiled(self, mesh, quick, tuple(options.items()))
        return jax.tree.map(np.asarray, step(arrays, given))


@functools.cache
def _compiled(
    case: Case, mesh: tuple[int, ...], quick: bool, options: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    def mean(arrays: Arrays, given: Arrays) -> jax.Array:
        return case.ours(arrays, given, **dict(options)).mean

    return jax.jit(jax.value_and_grad(mean), **(QUICK if quick else {}))


CASES = (
    Case("softmax"),
    Case("softmax rows", directions=(1.0, 0.0)),
    Case("softmax columns", directions=(0.0, 1.0)),
    Case("softmax weights", directions=(0.3, 0.7), weight=True),
    Case("softmax groups", group=True, weight=True),
    Case("softmax teacher", teacher=True, weight=True),
    Case("softmax teacher groups", teacher=True, group=True),
    Case("softmax negatives", extra=13),
    Case("softmax queue", extra=13, extra_valid=True, extra_group=True, group=True),
    Case("albef", directions=(1.0, 0.0), teacher=True, extra=13, extra_valid=True, weight=True),
    Case("sigmoid", sigmoid=True),
    Case("sigmoid groups", sigmoid=True, group=True, weight=True),
    Case("sigmoid negatives", sigmoid=True, extra=13, extra_valid=True, weight=True),
)


@pytest.fixture(params=CASES, ids=lambda case: case.name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    """Each variant of the loss."""
    return request.param


@pytest.fixture(scope="session")
def make_case() -> type[Case]:
    """Builds further variants."""
    return Case


def _check_close(found: Any, expected: Any, tolerance: float = 1e-5, floor: float = 0.0) -> None:
    assert not np.isnan(expected[0])
    pairs = {"value": (found[0], expected[0])}
    pairs |= {name: (found[1][name], expected[1][name]) for name in expected[1]}
    for name, (a, b) in pairs.items():
        assert np.all(np.isfinite(a)), name
        error = np.max(np.abs(np.asarray(a, np.float64) - b))
        assert error <= tolerance * max(np.max(np.abs(b)), floor), (name, error, np.max(np.abs(b)))


@pytest.fixture(scope="session")
def check_close() -> Callable[..., None]:
    """Asserts that value and every gradient agree, relative to each array's largest entry.

    `floor` is the size below which an array counts as zero: gradients that cancel.
    """
    return _check_close


@pytest.fixture(scope="session")
def reference_of() -> Callable[..., tuple[Arrays, Arrays, Any]]:
    """Inputs and expected results of a case, computed once for a session."""
    known: dict[Any, Any] = {}

    def look_up(case: Case, batch: int, dim: int, scale: float) -> tuple[Arrays, Arrays, Any]:
        key = (case, batch, dim, scale)
        if key not in known:
            arrays, given = case.inputs(batch, dim, scale)
            known[key] = (arrays, given, case.expected(arrays, given))
        return known[key]

    return look_up
