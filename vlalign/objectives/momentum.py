"""Contrast with targets from an EMA copy of the towers and queues of its embeddings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vlalign.errors import UserError
from vlalign.losses.contrast import Extra, Teacher, softmax_contrast
from vlalign.losses.loss import Loss
from vlalign.objectives.base import Across, Arrays, Local, Objective, Term, Towers, normalize
from vlalign.objectives.contrastive import clamp_scale, keep_embeddings, scale_param

_TOWERS = ("image", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumClip(Objective):
    """Momentum-distilled image-text contrast (Li et al. 2021, "Align before fuse", section 3.2).

    Each online embedding is scored against the momentum embeddings of the other modality, those of
    the batch and those in a queue. Its target is (1 - a) one-hot + a softmax of the momentum
    towers' own scores over the same columns.
    momentum: decay of the EMA copy.   queue: momentum embeddings kept of each modality, a multiple
    of the batch; 0 for none.   alpha: a.   alpha_warmup: steps in which a grows from 0.
    logit_scale_init, logit_scale_max: as in `Clip`.
    """

    momentum: float = 0.995
    queue: int = 0
    alpha: float = 0.4
    alpha_warmup: int = 0
    logit_scale_init: float = 1 / 0.07
    logit_scale_max: float | None = 100.0

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """logit_scale: log of the inverse temperature."""
        del rng
        return {"logit_scale": scale_param(self.logit_scale_init)}

    def init_memory(self, params: Mapping[str, Any], batch_size: int) -> Any:
        """The EMA copy; the queues are empty and filled from the first batch on."""
        if self.queue % batch_size:
            raise UserError(
                f"MomentumClip queue={self.queue} must be a multiple of data.batch_size="
                f"{batch_size}: whole batches enter and leave it"
            )
        memory: dict[str, Any] = {"towers": {n: jax.tree.map(jnp.copy, params[n]) for n in _TOWERS}}
        if self.queue:
            width = _joint_width(params)
            memory["queue"] = {n: jnp.zeros((self.queue, width), jnp.float32) for n in _TOWERS}
            memory["valid"] = jnp.zeros((self.queue,), bool)
        return memory

    def begin(self, memory: Any, params: Mapping[str, Any], step: jax.Array) -> Any:
        """EMA update before the batch is encoded, as in the paper's algorithm."""
        del step

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            return self.momentum * old + (1.0 - self.momentum) * new

        online = {name: params[name] for name in _TOWERS}
        return {**memory, "towers": jax.tree.map(move, memory["towers"], online)}

    def local(self, own: Mapping[str, Any], towers: Towers, memory: Any, step: jax.Array) -> Local:
        """Keeps the unit embeddings, online and momentum."""
        del own, step
        keep = keep_embeddings(towers)
        for short, name in (("zimg", "image"), ("ztxt", "text")):
            encoding = towers.encode_with(memory["towers"], "momentum", name)
            keep[f"{short}_ema"] = normalize(encoding.pooled)
        return Local(keep=keep)

    def across(self, own: Mapping[str, Any], kept: Arrays, memory: Any, step: jax.Array) -> Across:
        """Both directions, then the batch enters the queues."""
        scale = jnp.exp(own["logit_scale"])
        alpha = jnp.full((), self.alpha, jnp.float32)
        if self.alpha_warmup:
            alpha = alpha * jnp.minimum(1.0, step.astype(jnp.float32) / self.alpha_warmup)
        rows = self._direction(kept, memory, scale, alpha, "zimg", "ztxt", "text")
        columns = self._direction(kept, memory, scale, alpha, "ztxt", "zimg", "image")
        terms = {"contrast": Term(0.5 * (rows.sum + columns.sum), rows.count)}
        metrics = {
            "accuracy_rows": rows.metric_means()["accuracy_rows"],
            "accuracy_columns": columns.metric_means()["accuracy_rows"],
            "positive_logit": rows.metric_means()["positive_logit"],
            "logit_scale": scale,
            "alpha": alpha,
        }
        return Across(terms, metrics, self._enqueue(kept, memory))

    def _direction(
        self,
        kept: Arrays,
        memory: Any,
        scale: jax.Array,
        alpha: jax.Array,
        own: str,
        other: str,
        other_tower: str,
    ) -> Loss:
        """Online `own` against momentum `other`, in the batch and in the queue."""
        columns = jax.lax.stop_gradient(kept[f"{other}_ema"])
        queue = memory["queue"][other_tower] if self.queue else None
        teacher = Teacher(kept[f"{own}_ema"], columns, scale, alpha=alpha, extra_qd=queue)
        extra = None if queue is None else Extra(queue, memory["valid"])
        return softmax_contrast(
            kept[own],
            columns,
            logit_scale=scale,
            row_weight_b=kept["weight"],
            teacher=teacher,
            extra=extra,
            directions=(1.0, 0.0),
        )

    def _enqueue(self, kept: Arrays, memory: Any) -> Any:
        """First in, first out, a batch at a time; rows of weight 0 enter as absent."""
        if not self.queue:
            return memory
        size = kept["weight"].shape[0]

        def push(queue: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([new, queue[:-size]])

        new = {"image": kept["zimg_ema"], "text": kept["ztxt_ema"]}
        queue = {name: push(memory["queue"][name], new[name]) for name in _TOWERS}
        valid = push(memory["valid"], kept["weight"] > 0)
        return {**memory, "queue": queue, "valid": valid}

    def finish(self, own: dict[str, Any]) -> dict[str, Any]:
        """Clamps the scale."""
        return clamp_scale(own, self.logit_scale_max)


def _joint_width(params: Mapping[str, Any]) -> int:
    """Width of the joint space, from the towers' output maps."""
    for name in _TOWERS:
        if "proj" in params[name]:
            return int(params[name]["proj"]["kernel"].shape[-1])
    raise UserError(
        "MomentumClip with a queue needs a tower with embed_dim set (a map to the joint space)"
    )
