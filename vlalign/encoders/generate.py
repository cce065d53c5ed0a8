"""Captions word by word, each step for one token: what came before is remembered."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vlalign.encoders.cache import COLLECTION, rewound
from vlalign.encoders.coca import CocaText, causal
from vlalign.encoders.decoder import CaptionDecoder
from vlalign.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from its logits.

    temperature: they are divided by it; 0: always the most likely token.
    top_k: only so many of the most likely ones; None: all.
    top_p: then only the fewest of them that have at least this share of the probability (Holtzman
      et al. 2020, arXiv:1904.09751); None: all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"Sampling temperature={self.temperature} must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"Sampling top_k={self.top_k} must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"Sampling top_p={self.top_p} must be above 0 and at most 1")
        if not self.temperature and (self.top_k, self.top_p) != (None, None):
            raise UserError(
                "Sampling with temperature=0 takes the first: leave out top_k and top_p"
            )

    def __call__(self, logits_bv: jax.Array, key: jax.Array) -> jax.Array:
        """logits_bv: (b, v) -> (b,) int32."""
        if not self.temperature:
            return jnp.argmax(logits_bv, axis=1).astype(jnp.int32)
        logits = logits_bv / self.temperature
        if self.top_k is not None:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p is not None:
            ordered = -jnp.sort(-logits, axis=1)
            share = jax.nn.softmax(ordered, axis=1)
            # A token stays where those before it do not have the share yet.
            stays = jnp.cumsum(share, axis=1) - share < self.top_p
            least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits, axis=1).astype(jnp.int32)


def generate(
    text: CocaText,
    decoder: CaptionDecoder,
    params: Mapping[str, Any],
    image_bsc: jax.Array,
    prompt_bp: jax.Array,
    *,
    end_id: int,
    length: int,
    shortest: int = 0,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    image_mask_bs: jax.Array | None = None,
) -> jax.Array:
    """Captions of images: (b, length) int32, the prompt first, `text.pad_id` behind the end.

    To be called under `jax.jit`; the loop ends with the last caption. A caption that would not end
    gets `end_id` at its last place.

    params: those of "text" and of "decoder".   image_bsc: tokens of the image tower.
    prompt_bp: (b, p) int32, p at least 1: the start token, and what captions shall begin with.
    end_id: of the token that ends a caption; padding does too.   length: tokens of a row.
    shortest: tokens before which there is no end.   key: for sampling.
    image_mask_bs: False where a token of the image is padding.
    Raises UserError if length does not fit the prompt or the text tower, or a key is missing.
    """
    (b, p), pad = prompt_bp.shape, text.pad_id
    _check(p, length, text.length)
    if key is None and sampling.temperature:
        raise UserError("generate with sampling.temperature above 0 needs a key")
    key = jax.random.key(0) if key is None else key
    reader = _Reader(text, decoder, params, image_bsc, image_mask_bs)
    index = jnp.arange(length, dtype=jnp.int32)

    def step(state: Any) -> Any:
        place, tokens, done, cache = state
        token = jax.lax.dynamic_slice_in_dim(tokens, place, 1, axis=1)
        found, cache = reader(cache, token, place, (index <= place)[None, None, None])
        too_early = (jnp.arange(found.shape[2]) == end_id) & (place + 1 < shortest)
        scores = jnp.where(too_early[None], -jnp.inf, found[:, 0])
        token = sampling(scores, jax.random.fold_in(key, place))
        token = jnp.where(place + 2 == length, jnp.int32(end_id), token)
        token = jnp.where(done, jnp.int32(pad), token)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], place + 1, axis=1)
        return place + 1, tokens, done | (token == end_id) | (token == pad), cache

    def goes_on(state: Any) -> jax.Array:
        place, _, done, _ = state
        return (place + 1 < length) & ~jnp.all(done)

    tokens = jnp.full((b, length), pad, jnp.int32)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, prompt_bp.astype(jnp.int32), 0, axis=1)
    # All places at once make the arrays; those behind the prompt are written again before they
    # are seen.
    _, cache = reader({}, tokens, jnp.int32(0), causal(length))
    done = (tokens[:, p - 1] == end_id) | (tokens[:, p - 1] == pad)
    start = jnp.int32(p - 1)
    return jax.lax.while_loop(goes_on, step, (start, tokens, done, rewound(cache, start)))[1]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Text tower and decoder as one function from tokens to the logits of what follows them."""

    text: CocaText
    decoder: CaptionDecoder
    params: Mapping[str, Any]
    image_bsc: jax.Array
    image_mask_bs: jax.Array | None

    def __call__(self, cache: Any, tokens: jax.Array, place: jax.Array, mask: jax.Array) -> Any:
        """Logits (b, l, v), and the cache with the tokens (b, l) that stand from `place` on."""
        text, decoder = (
            {"params": self.params[name], **cache.get(name, {})} for name in ("text", "decoder")
        )
        remembering: dict[str, Any] = dict(mutable=[COLLECTION])
        hidden, text_cache = self.text.apply(
            text, tokens, place, mask, method="hidden", **remembering
        )
        logits, decoder_cache = self.decoder.apply(
            decoder, hidden, self.image_bsc, self.image_mask_bs, mask=mask, **remembering
        )
        return logits, {"text": text_cache, "decoder": decoder_cache}


def _check(prompt: int, length: int, most: int) -> None:
    if not 1 <= prompt < length <= most:
        raise UserError(
            f"generate length={length} with a prompt of {prompt}: there must be a prompt, room "
            f"behind it, and no more than the text tower's length={most}"
        )
