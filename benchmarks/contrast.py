"""Time and memory of the streaming contrast kernel against the dense form, in one run.

    python benchmarks/contrast.py --batch 1024 2048 4096 8192 --dim 256

For every batch size: milliseconds of value and all gradients (best of several, the two forms taking
turns), their ratio, and the compiled program's temporary memory. One device, float32.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlalign.losses.contrast import BLOCK_SIZE, Teacher, sigmoid_contrast, softmax_contrast

Loss = Callable[..., jax.Array]
MIB = 2**20


def softmax_dense(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """CLIP as everyone writes it."""
    logits = scale * (x @ y.T)
    rows, columns = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    return -0.5 * jnp.mean(jnp.diagonal(rows) + jnp.diagonal(columns))


def sigmoid_dense(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """SigLIP as in big_vision."""
    logits = scale * (x @ y.T) + bias
    labels = 2.0 * jnp.eye(x.shape[0], dtype=x.dtype) - 1.0
    return -jnp.sum(jax.nn.log_sigmoid(labels * logits)) / x.shape[0]


def soft_dense(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """ALBEF's targets, the teacher being the shifted embeddings."""
    logits = scale * (x @ y.T)
    teacher = jax.lax.stop_gradient(scale * (jnp.roll(x, 1, 1) @ jnp.roll(y, 1, 1).T))
    loss = jnp.zeros((), x.dtype)
    for axis in (0, 1):
        target = 0.6 * jnp.eye(x.shape[0], dtype=x.dtype) + 0.4 * jax.nn.softmax(teacher, axis)
        loss -= 0.5 * jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis), axis))
    return loss


def streaming(form: str, block_size: int) -> Loss:
    """Our form of the same name."""

    def loss(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        if form == "sigmoid":
            return sigmoid_contrast(
                x, y, logit_scale=scale, logit_bias=bias, block_size=block_size
            ).mean
        teacher = Teacher(jnp.roll(x, 1, 1), jnp.roll(y, 1, 1), scale, 0.4)
        return softmax_contrast(
            x,
            y,
            logit_scale=scale,
            block_size=block_size,
            teacher=teacher if form == "soft" else None,
        ).mean

    return loss


DENSE = {"softmax": softmax_dense, "sigmoid": sigmoid_dense, "soft": soft_dense}


def compiled(loss: Loss, arguments: tuple[jax.Array, ...]) -> Any:
    """The program of value and all gradients."""
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(*arguments).compile()


def seconds(programs: list[Any], arguments: tuple[jax.Array, ...], repeats: int) -> list[float]:
    """Best time of each program; taking turns, so that a busy machine hurts all alike."""
    best = [float("inf")] * len(programs)
    for _ in range(repeats + 1):
        for i, program in enumerate(programs):
            begin = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


def embeddings(batch: int, dim: int) -> tuple[jax.Array, ...]:
    """Unit-norm random pairs, a scale and a bias."""
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (batch, dim), jnp.float32) for key in keys)
    unit = [z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    return *unit, jnp.float32(20.0), jnp.float32(-10.0)


def row(form: str, batch: int, dim: int, block_size: int, repeats: int) -> str:
    """One line of the table."""
    arguments = embeddings(batch, dim)
    programs = [compiled(f, arguments) for f in (DENSE[form], streaming(form, block_size))]
    dense, ours = seconds(programs, arguments, repeats)
    memory = [p.memory_analysis().temp_size_in_bytes / MIB for p in programs]
    return (
        f"{form:8} {batch:6} {dense * 1e3:10.2f} {ours * 1e3:10.2f} {ours / dense:6.2f} "
        f"{memory[0]:10.1f} {memory[1]:9.1f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--form", choices=sorted(DENSE), nargs="+", default=sorted(DENSE))
    parser.add_argument("--block-size", type=int, default=BLOCK_SIZE)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, d={args.dim}, blocks of {args.block_size}")
    print("form      batch   dense ms    ours ms  ratio  dense MiB  ours MiB", flush=True)
    for form in args.form:
        for batch in args.batch:
            print(row(form, batch, args.dim, args.block_size, args.repeats), flush=True)


if __name__ == "__main__":
    main()
