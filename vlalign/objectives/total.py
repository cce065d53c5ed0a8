"""All objectives over one batch: micro-batches, the weighted sum, metrics, next memory."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.objectives.base import Across, Arrays, Local, Objective, Term, Towers
from vlalign.parallel.constraint import shard_batch


def total_loss(
    model: Mapping[str, nn.Module],
    objectives: Mapping[str, Objective],
    params: Mapping[str, Any],
    memory: Mapping[str, Any],
    batch: Arrays,
    rng: jax.Array,
    step: jax.Array,
    *,
    micro_batches: int = 1,
) -> tuple[jax.Array, tuple[Arrays, dict[str, Any]]]:
    """The weighted loss of a batch -> loss (), (metrics, next memory).

    params: towers by name, and "objectives" -> name -> own parameters.   batch: (b, ...) fields.
    micro_batches: in how many parts the batch is encoded, one after the other, with the activations
    recomputed in the backward pass; the loss is over all of it, so negatives and result are those
    of the whole batch.
    """
    own = params["objectives"]
    begun = {
        name: jax.lax.stop_gradient(objective.begin(memory[name], params, step))
        for name, objective in objectives.items()
    }

    def local(part: Arrays, rows: jax.Array) -> dict[str, Local]:
        towers = Towers(model, params, part, rows, rng)
        return {
            name: objective.local(own[name], towers, begun[name], step)
            for name, objective in objectives.items()
        }

    locals_ = _encode(local, batch, micro_batches)
    loss = jnp.zeros((), jnp.float32)
    metrics: Arrays = {}
    next_memory: dict[str, Any] = {}
    for name, objective in objectives.items():
        with jax.named_scope(f"objective/{name}"):
            out: Across = objective.across(own[name], locals_[name].keep, begun[name], step)
        terms = {**locals_[name].terms, **out.terms}
        value = sum((term.mean for term in terms.values()), jnp.zeros((), jnp.float32))
        loss = loss + objective.weight * value
        metrics[f"{name}/loss"] = value
        if len(terms) > 1:
            metrics |= {f"{name}/{key}": term.mean for key, term in terms.items()}
        metrics |= {f"{name}/{key}": value for key, value in out.metrics.items()}
        next_memory[name] = jax.lax.stop_gradient(out.memory)
    return loss, (metrics, next_memory)


def _encode(local: Any, batch: Arrays, micro_batches: int) -> dict[str, Local]:
    size = batch["weight"].shape[0]
    rows = jnp.arange(size, dtype=jnp.int32)
    if micro_batches == 1:
        whole: dict[str, Local] = local(batch, rows)
        return whole

    def cut(x: jax.Array) -> jax.Array:
        # Strided: part i holds rows i, i + m, ... so that each part lies on all devices as the
        # batch does and no row has to move.
        x = x.reshape(size // micro_batches, micro_batches, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1)

    def join(x: jax.Array) -> jax.Array:
        return shard_batch(jnp.swapaxes(x, 0, 1).reshape(size, *x.shape[2:]))

    def body(carry: None, part: tuple[Arrays, jax.Array]) -> tuple[None, dict[str, Local]]:
        fields = {name: shard_batch(x) for name, x in part[0].items()}
        return carry, local(fields, part[1])

    parts = ({name: cut(x) for name, x in batch.items()}, cut(rows))
    _, out = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, parts)

    def merge(part: Local) -> Local:
        terms = {k: Term(jnp.sum(t.sum), jnp.sum(t.count)) for k, t in part.terms.items()}
        return Local(terms=terms, keep={k: join(x) for k, x in part.keep.items()})

    return {name: merge(part) for name, part in out.items()}
