"""Other ways to contrast a batch in tiles: a plain loop with `jax.checkpoint`, and Inf-CL's.

Written from their descriptions, to compare the memory they need. Both run once for the rows and
once for the columns.
"""

import functools

import jax
import jax.numpy as jnp
from _forms import ALPHA, AXIS, Form, Pairs, gather, on_devices
from jax import lax

State = tuple[jax.Array, ...]


def tiled(name: str, *, block: int) -> Form:
    """All columns gathered, a loop over tiles whose scores `jax.checkpoint` recomputes."""

    def on_device(p: Pairs) -> jax.Array:
        x, y, tx, ty = p.x, p.y, p.teacher_x, p.teacher_y
        if name == "sigmoid":
            return _rows(name, block, p, x, y, tx, ty)
        rows, columns = _rows(name, block, p, x, y, tx, ty), _rows(name, block, p, y, x, ty, tx)
        return 0.5 * (rows + columns)

    return on_devices(on_device)


def _rows(
    name: str, block: int, p: Pairs, x: jax.Array, y: jax.Array, tx: jax.Array, ty: jax.Array
) -> jax.Array:
    """Sum of the losses of a device's rows x among all columns."""
    own = p.scale * jnp.sum(x * y, axis=1)
    columns = _blocks(gather(y), block), _blocks(gather(ty), block)

    def of_rows(row: State) -> State:
        xb, txb = row
        low, zero = jnp.full(xb.shape[:1], -jnp.inf), jnp.zeros(xb.shape[:1])

        @jax.checkpoint
        def step(state: State, column: State) -> tuple[State, None]:
            scores = p.scale * (xb @ column[0].T)
            if name == "sigmoid":
                return (state[0] + jnp.sum(jax.nn.softplus(scores + p.bias), axis=1),), None
            lse = jnp.logaddexp(state[0], jax.nn.logsumexp(scores, axis=1))
            if name == "softmax":
                return (lse,), None
            teacher = lax.stop_gradient(p.scale * (txb @ column[1].T))
            soft_lse = jnp.logaddexp(state[1], jax.nn.logsumexp(teacher, axis=1))
            mean = jnp.sum(jnp.exp(teacher - soft_lse[:, None]) * scores, axis=1)
            return (lse, soft_lse, state[2] * jnp.exp(state[1] - soft_lse) + mean), None

        start = {"sigmoid": (zero,), "softmax": (low,), "soft": (low, low, zero)}[name]
        return lax.scan(step, start, columns)[0]

    found = [v.reshape(-1) for v in lax.map(of_rows, (_blocks(x, block), _blocks(tx, block)))]
    if name == "sigmoid":
        own = own + p.bias
        return jnp.sum(found[0] - jax.nn.softplus(own) + jax.nn.softplus(-own))
    if name == "softmax":
        return jnp.sum(found[0] - own)
    return jnp.sum(found[0] - (1.0 - ALPHA) * own - ALPHA * found[2])


def inf_cl(*, block: int) -> Form:
    """Inf-CL (Cheng et al. 2024, arXiv:2410.17243): softmax, a ring of devices, tiles on each.

    Forward keeps the log-sum-exps only; backward goes round once more and recomputes the tiles,
    the gradient of the columns travelling with them.
    """

    def on_device(p: Pairs) -> jax.Array:
        own = p.scale * jnp.sum(p.x * p.y, axis=1)
        rows, columns = _ring_lse(block, p.x, p.y, p.scale), _ring_lse(block, p.y, p.x, p.scale)
        return jnp.sum(0.5 * (rows + columns) - own)

    return on_devices(on_device)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_lse(block: int, x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
    """Log-sum-exp over all devices' columns y, of a device's rows x: (b,)."""

    def step(_: jax.Array, state: State) -> State:
        y, lse = state

        def tile(lse: jax.Array, yb: jax.Array) -> tuple[jax.Array, None]:
            def of_rows(row: State) -> jax.Array:
                return jnp.logaddexp(row[1], jax.nn.logsumexp(scale * (row[0] @ yb.T), axis=1))

            return lax.map(of_rows, (_blocks(x, block), lse)), None

        return _pass_on(y), lax.scan(tile, lse, _blocks(y, block))[0]

    start = jnp.full_like(_blocks(x[:, 0], block), -jnp.inf)
    return lax.fori_loop(0, lax.axis_size(AXIS), step, (y, start))[1].reshape(-1)


def _ring_forward(
    block: int, x: jax.Array, y: jax.Array, scale: jax.Array
) -> tuple[jax.Array, State]:
    lse = _ring_lse(block, x, y, scale)
    return lse, (x, y, scale, lse)


def _ring_backward(block: int, saved: State, cotangent: jax.Array) -> State:
    x, y, scale, lse = saved
    rows = tuple(_blocks(v, block) for v in (x, lse, cotangent))

    def step(_: jax.Array, state: State) -> State:
        y, for_y, for_x, for_scale = state

        def tile(carry: State, yb: jax.Array) -> tuple[State, jax.Array]:
            def of_rows(inner: State, row: State) -> tuple[State, jax.Array]:
                xb, lse_b, g = row
                cosines = xb @ yb.T
                grad = g[:, None] * jnp.exp(scale * cosines - lse_b[:, None])
                inner = inner[0] + scale * (grad.T @ xb), inner[1] + jnp.sum(grad * cosines)
                return inner, scale * (grad @ yb)

            (for_yb, for_scale), new = lax.scan(of_rows, (jnp.zeros_like(yb), carry[1]), rows)
            return (carry[0] + new, for_scale), for_yb

        (for_x, for_scale), new = lax.scan(tile, (for_x, for_scale), _blocks(y, block))
        return _pass_on(y), _pass_on(for_y + new.reshape(y.shape)), for_x, for_scale

    start = y, jnp.zeros_like(y), jnp.zeros_like(rows[0]), jnp.zeros_like(scale)
    _, for_y, for_x, for_scale = lax.fori_loop(0, lax.axis_size(AXIS), step, start)
    return for_x.reshape(x.shape), for_y, for_scale


_ring_lse.defvjp(_ring_forward, _ring_backward)


def _pass_on(z: jax.Array) -> jax.Array:
    """To the next device of the ring."""
    n = lax.axis_size(AXIS)
    return lax.ppermute(z, AXIS, [(i, (i + 1) % n) for i in range(n)])


def _blocks(z: jax.Array, block: int) -> jax.Array:
    """(n, ...) as (blocks, length, ...), n a multiple of the length."""
    return z.reshape(-1, min(block, z.shape[0]), *z.shape[1:])
