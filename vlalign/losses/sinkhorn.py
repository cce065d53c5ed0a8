"""Optimal transport between the rows and columns of a batch, without its (B, B) plan."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vlalign.losses.contrast import Teacher
from vlalign.losses.inputs import Options
from vlalign.losses.kernel.form import Form
from vlalign.losses.kernel.statistics import LogSum
from vlalign.losses.kernel.sweep import wide
from vlalign.losses.pairs import Pairs
from vlalign.losses.scores import Shifted


def sinkhorn_potentials(
    x_bd: jax.Array, y_bd: jax.Array, *, iterations: int, **options: Unpack[Options]
) -> tuple[jax.Array, jax.Array]:
    """Potentials f, g (B,) that make exp(scores_ij + f_i + g_j) doubly stochastic; no gradient.

    Entropic transport by Sinkhorn's iterations in log space (Cuturi 2013, arXiv:1306.0895), each a
    pass over tiles for each side; after the last one columns sum to 1, rows nearly. 1 / logit_scale
    is the regularisation. Left-out samples take no part, their potentials are 0.
    x_bd, y_bd: (B, d). options: as in `softmax_contrast`, but for score, groups and extra columns.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: must be at least 1")
    for name in ("score", "extra", "group_b"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: has no meaning for the transport of a batch")
    options = Options(**options | {"score": Shifted()})
    x_bd, y_bd = lax.stop_gradient((x_bd, y_bd))

    def lse(f_b: jax.Array, g_b: jax.Array, side: int) -> jax.Array:
        x, y = {"z": x_bd, "shift": f_b}, {"z": y_bd, "shift": g_b}
        pairs = Pairs.of(x, y, **options)
        named = (("all", LogSum("all")),)
        form = Form(rows=named) if side == 0 else Form(columns=named)
        found_b = pairs.statistics(form)[side]["all"]["lse"]
        return found_b if pairs.valid_b is None else jnp.where(pairs.valid_b, found_b, 0.0)

    def step(_: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        zero_b = jnp.zeros_like(state[0])
        f_b = -lse(zero_b, state[1], 0)
        return f_b, -lse(f_b, zero_b, 1)

    zero_b = jnp.zeros(x_bd.shape[:1], wide(x_bd.dtype))
    return lax.stop_gradient(lax.fori_loop(0, iterations, step, (zero_b, zero_b)))


def transport_teacher(
    x_bd: jax.Array,
    y_bd: jax.Array,
    *,
    alpha: ArrayLike,
    iterations: int,
    **options: Unpack[Options],
) -> Teacher:
    """Targets (1 - alpha) * diagonal + alpha * the batch's transport plan, rows made to sum to 1.

    The rectified targets of Norton (Lin et al. 2024, arXiv:2401.16702, eq. 7). Arguments as in
    `sinkhorn_potentials`.
    """
    f_b, g_b = sinkhorn_potentials(x_bd, y_bd, iterations=iterations, **options)
    return Teacher(
        {"z": x_bd, "shift": f_b},
        {"z": y_bd, "shift": g_b},
        options["logit_scale"],
        alpha,
        score=Shifted(),
    )
