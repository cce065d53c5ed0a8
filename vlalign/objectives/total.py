"""All objectives over one batch: micro-batches, the weighted sum, metrics, next memory."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.objectives.base import Across, Arrays, Objective, Term, Towers
from vlalign.parallel.micro import in_parts

# Of a row of the batch: its place in the whole.
_ROWS = "_rows"


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

    def encode(params: Any, part: Arrays) -> tuple[Any, dict[str, Arrays]]:
        fields = {name: x for name, x in part.items() if name != _ROWS}
        towers = Towers(model, params, fields, part[_ROWS], rng)
        out = {}
        for name, objective in objectives.items():
            out[name] = objective.local(params["objectives"][name], towers, begun[name], step)
        terms = {name: {k: (t.sum, t.count) for k, t in o.terms.items()} for name, o in out.items()}
        return terms, {name: o.keep for name, o in out.items()}

    places = jnp.arange(batch["weight"].shape[0], dtype=jnp.int32)
    terms, kept = in_parts(encode, params, {**batch, _ROWS: places}, micro_batches)
    loss = jnp.zeros((), jnp.float32)
    metrics: Arrays = {}
    next_memory: dict[str, Any] = {}
    for name, objective in objectives.items():
        with jax.named_scope(f"objective/{name}"):
            out: Across = objective.across(own[name], kept[name], begun[name], step)
        every = {key: Term(*sums) for key, sums in terms[name].items()} | out.terms
        value = sum((term.mean for term in every.values()), jnp.zeros((), jnp.float32))
        loss = loss + objective.weight * value
        metrics[f"{name}/loss"] = value
        if len(every) > 1:
            metrics |= {f"{name}/{key}": term.mean for key, term in every.items()}
        metrics |= {f"{name}/{key}": value for key, value in out.metrics.items()}
        next_memory[name] = jax.lax.stop_gradient(out.memory)
    return loss, (metrics, next_memory)
