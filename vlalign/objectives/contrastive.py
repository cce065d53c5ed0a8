"""CLIP and SigLIP: image-text contrast over the whole batch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vlalign.losses.contrast import sigmoid_contrast, softmax_contrast
from vlalign.losses.inputs import Options
from vlalign.objectives.base import Across, Arrays, Local, Objective, Term, Towers, normalize


def scale_param(init: float) -> jax.Array:
    """The logarithm of a learned inverse temperature, () float32, as CLIP stores it."""
    return jnp.full((), math.log(init), jnp.float32)


def clamp_scale(own: dict[str, Any], maximum: float | None) -> dict[str, Any]:
    """Own parameters with exp(logit_scale) at most `maximum` (None: no limit)."""
    if maximum is None:
        return own
    limit = jnp.full((), math.log(maximum), jnp.float32)
    return {**own, "logit_scale": jnp.minimum(own["logit_scale"], limit)}


def keep_embeddings(towers: Towers) -> Arrays:
    """Unit embeddings of image and text and the weight of each row: `zimg`, `ztxt`, `weight`.

    And `group` and `duplicate`, where the data has views of these names (`data/fields.py`).
    """
    facts = {name: towers.batch[name] for name in ("group", "duplicate") if name in towers.batch}
    return facts | {
        "zimg": normalize(towers.encode("image").pooled),
        "ztxt": normalize(towers.encode("text").pooled),
        "weight": towers.weight,
    }


def pair_options(kept: Arrays, scale: jax.Array) -> Options:
    """What of `keep_embeddings` the losses over pairs take: weights, positives, duplicates."""
    return Options(
        logit_scale=scale,
        row_weight_b=kept["weight"],
        group_b=kept.get("group"),
        duplicate_b=kept.get("duplicate"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Objective):
    """Base of the losses over all pairs of image and text embeddings of the batch."""

    def local(self, own: Mapping[str, Any], towers: Towers, memory: Any, step: jax.Array) -> Local:
        """Keeps the unit embeddings."""
        del own, memory, step
        return Local(keep=keep_embeddings(towers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Pairs):
    """Symmetric softmax contrast (Radford et al. 2021, "Learning transferable visual models").

    loss = (CE(s zimg ztxt^T, diagonal) + CE of the transpose) / 2, s = exp(logit_scale) learned.
    logit_scale_init: s at the start.   logit_scale_max: clamp after each update, None for none.
    """

    logit_scale_init: float = 1 / 0.07
    logit_scale_max: float | None = 100.0

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """logit_scale: log of the inverse temperature."""
        del rng
        return {"logit_scale": scale_param(self.logit_scale_init)}

    def across(self, own: Mapping[str, Any], kept: Arrays, memory: Any, step: jax.Array) -> Across:
        """The loss over the whole batch."""
        del step
        scale = jnp.exp(own["logit_scale"])
        contrast = softmax_contrast(kept["zimg"], kept["ztxt"], **pair_options(kept, scale))
        metrics = contrast.metric_means() | {"logit_scale": scale}
        return Across({"contrast": Term(contrast.sum, contrast.count)}, metrics, memory)

    def finish(self, own: dict[str, Any]) -> dict[str, Any]:
        """Clamps the scale."""
        return clamp_scale(own, self.logit_scale_max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLip(Pairs):
    """Sigmoid contrast of all pairs (Zhai et al. 2023, "Sigmoid loss for language image training").

    loss = -1/B sum_ij log sigmoid(y_ij (s zimg_i ztxt_j + bias)), y = 1 on the diagonal, else -1.
    logit_scale_init, logit_bias_init: s and bias at the start; both learned, s without a clamp
    (published models learn 110 to 118).
    """

    logit_scale_init: float = 10.0
    logit_bias_init: float = -10.0

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """logit_scale: log of the inverse temperature; logit_bias."""
        del rng
        bias = jnp.full((), self.logit_bias_init, jnp.float32)
        return {"logit_scale": scale_param(self.logit_scale_init), "logit_bias": bias}

    def across(self, own: Mapping[str, Any], kept: Arrays, memory: Any, step: jax.Array) -> Across:
        """The loss over the whole batch."""
        del step
        scale = jnp.exp(own["logit_scale"])
        contrast = sigmoid_contrast(
            kept["zimg"],
            kept["ztxt"],
            **pair_options(kept, scale) | {"logit_bias": own["logit_bias"]},
        )
        metrics = contrast.metric_means()
        metrics |= {"logit_scale": scale, "logit_bias": own["logit_bias"]}
        return Across({"contrast": Term(contrast.sum, contrast.count)}, metrics, memory)
