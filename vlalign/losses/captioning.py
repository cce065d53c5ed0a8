"""Cross-entropy of captions, from logits or, without ever holding those, from hidden states."""

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses import rows
from vlalign.losses.cross_entropy import cross_entropy
from vlalign.losses.loss import Loss


def captioning_loss(
    logits_blv: jax.Array,
    targets_bl: jax.Array,
    *,
    mask_bl: jax.Array | None = None,
    pad_id: int | None = None,
    label_smoothing: float = 0.0,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Cross-entropy of the next token, the mean over all tokens of the batch.

    CoCa (Yu et al. 2022, arXiv:2205.01917, equation 3), averaged over tokens as in open_clip.
    Neither pass makes an array of log-probabilities: see `cross_entropy`.

    logits_blv: (B, l, v). targets_bl: integer (B, l), the token that the logits at its place are to
    predict: shift before the call. A token outside [0, v) makes the loss nan.
    mask_bl: (B, l), bool or weights of tokens; 0 leaves a token out, whatever it holds.
    pad_id: tokens of this number are left out too.
    label_smoothing: 0 up to below 1, the share of the target that is spread over all v tokens.
    row_weight_b: (B,), multiplies the weights of the row's tokens. `count` is the weight of tokens.
    Raises ValueError for inputs that do not fit together.
    """
    if logits_blv.ndim != 3 or not jnp.issubdtype(logits_blv.dtype, jnp.floating):
        raise ValueError(
            f"logits_blv {logits_blv.shape} {logits_blv.dtype}: must be floats (B, l, v)"
        )
    weight_bl = _weights(logits_blv, targets_bl, row_weight_b, mask_bl, pad_id)
    loss_bl = cross_entropy(logits_blv, targets_bl, weight_bl > 0, label_smoothing)
    return rows.row_loss(loss_bl, weight_bl)


def captioning_loss_from_hidden(
    hidden_bld: jax.Array,
    embedding_vd: jax.Array,
    targets_bl: jax.Array,
    *,
    chunk_length: int = 16,
    mask_bl: jax.Array | None = None,
    pad_id: int | None = None,
    label_smoothing: float = 0.0,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """`captioning_loss` of the logits <hidden, embedding>, of which only a chunk exists at a time.

    Chunks are cut along l, so that a batch that is cut over devices stays where it is. Temporaries
    are O(B * (l * d + chunk_length * v) + v * d), in both passes: the backward pass makes each
    chunk's logits again.

    hidden_bld: (B, l, d). embedding_vd: (v, d), of the same dtype; in bfloat16 products are summed,
    and the embedding's gradient is accumulated, in float32.
    chunk_length: tokens of a row in a chunk, at least 1.
    All else as in `captioning_loss`.
    """
    if hidden_bld.ndim != 3 or embedding_vd.shape[1:] != hidden_bld.shape[2:]:
        raise ValueError(
            f"hidden_bld {hidden_bld.shape}, embedding_vd {embedding_vd.shape}: "
            "must be (B, l, d) and (v, d)"
        )
    low = hidden_bld.dtype
    if low != embedding_vd.dtype or not jnp.issubdtype(low, jnp.floating):
        raise ValueError(
            f"hidden_bld {low}, embedding_vd {embedding_vd.dtype}: must be one float dtype"
        )
    if chunk_length < 1:
        raise ValueError(f"chunk_length={chunk_length}: must be at least 1")
    weight_bl = _weights(hidden_bld, targets_bl, row_weight_b, mask_bl, pad_id)
    # Outside the loop: what the chunks add to its gradient is summed in this dtype.
    table_vd = embedding_vd.astype(rows.wide(embedding_vd))

    @jax.checkpoint
    def of_chunk(chunk: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden_bcd, targets_bc, weight_bc = chunk
        logits_bcv = _logits(hidden_bcd, table_vd.astype(low))
        return cross_entropy(logits_bcv, targets_bc, weight_bc > 0, label_smoothing)

    hidden_bld = rows.zero_left_out(hidden_bld, weight_bl)
    chunks = tuple(_cut(a, chunk_length) for a in (hidden_bld, targets_bl, weight_bl))
    return rows.row_loss(lax.map(of_chunk, chunks), chunks[2])


def _weights(
    states: jax.Array,
    targets_bl: jax.Array,
    row_weight_b: jax.Array | None,
    mask_bl: jax.Array | None,
    pad_id: int | None,
) -> jax.Array:
    """Weights (B, l) of tokens. Raises ValueError for what does not fit."""
    shape = states.shape[:2]
    rows.check_integers("targets_bl", targets_bl, shape)
    if mask_bl is None:
        mask_bl = jnp.ones(shape, jnp.bool_)
    weight_bl = rows.weights(shape, rows.wide(states), row_weight_b, mask_bl)
    return weight_bl if pad_id is None else jnp.where(targets_bl != pad_id, weight_bl, 0.0)


def _logits(hidden_bcd: jax.Array, embedding_vd: jax.Array) -> jax.Array:
    contract = (((2,), (1,)), ((), ()))
    wide = rows.wide(hidden_bcd)
    return lax.dot_general(
        hidden_bcd, embedding_vd, contract, precision=rows.EXACT, preferred_element_type=wide
    )


def _cut(a: jax.Array, length: int) -> jax.Array:
    """(B, l, ...) to (chunks, B, length, ...), filled up with zeroes: tokens of weight 0."""
    chunks = -(-a.shape[1] // length)
    rest = ((0, 0),) * (a.ndim - 2)
    a = jnp.pad(a, ((0, 0), (0, chunks * length - a.shape[1]), *rest))
    return jnp.moveaxis(a.reshape(a.shape[0], chunks, length, *a.shape[2:]), 1, 0)
