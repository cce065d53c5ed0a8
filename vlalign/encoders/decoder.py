"""A decoder of captions: the text's hidden states and an image's tokens -> logits of what follows.

Letters: b batch, l tokens of text, s of the image, d width, c width of the image's, v vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import CrossAttention
from vlalign.encoders.blocks import Block, Mlp, Stack, hidden_width
from vlalign.encoders.cache import COLLECTION
from vlalign.encoders.coca import causal
from vlalign.encoders.layers import Activation, Dtype, LayerNorm, Linear
from vlalign.encoders.remat import Remat, policy
from vlalign.errors import UserError


class CrossBlock(nn.Module):
    """x + attention(norm(x), norm(image)), then x + mlp(norm(x)): (b, l, d) -> (b, l, d).

    Fields as in `Block`.
    """

    width: int
    heads: int
    hidden: int
    activation: Activation
    depth_scale: float
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bld: jax.Array, image_bsc: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x_bld: (b, l, d); image_bsc: (b, s, c); mask: see `attend` -> (b, l, d)."""
        b, l, d = x_bld.shape
        attention = CrossAttention(self.heads, self.dtype, self.depth_scale, name="attn")
        seen = self._norm("ln_image", image_bsc)
        x = x_bld + attention(self._norm("ln_1", x_bld), seen, mask)
        args = (d, self.hidden, self.activation, self.depth_scale, self.dtype)
        y = Mlp(*args, name="mlp")(self._norm("ln_2", x).reshape(b * l, d))
        return x + y.reshape(b, l, d)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return LayerNorm(self.epsilon, name=name)(x).astype(jnp.dtype(self.dtype))


class DecoderBlock(nn.Module):
    """A block over the text, then one from the text to the image. Fields as in `Block`."""

    width: int
    heads: int
    hidden: int
    activation: Activation
    depth_scale: float
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x_bld: jax.Array,
        mask: jax.Array,
        image_bsc: jax.Array,
        image_mask: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """x_bld: (b, l, d) -> (b, l, d), and None as `nn.scan` wants a second output."""
        d, h, m, scale = self.width, self.heads, self.hidden, self.depth_scale
        args = (d, h, m, self.activation, scale, self.epsilon, self.dtype)
        x, _ = Block(*args, name="text")(x_bld, mask)
        return CrossBlock(*args, name="image")(x, image_bsc, image_mask), None


class CaptionDecoder(nn.Module):
    """CoCa's multimodal decoder (Yu et al. 2022, arXiv:2205.01917, section 3.2).

    The text comes as the hidden states of a causal tower (`CocaText.tokens`), the image as tokens.

    vocab_size: v.   width, depth, heads, mlp_ratio, activation, epsilon, scan, remat, dtype: as in
    `ViT`; a layer is a block over the text and one to the image.
    """

    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    epsilon: float = 1e-5
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        if self.width % self.heads:
            raise UserError(
                f"CaptionDecoder width={self.width} does not divide into heads={self.heads}"
            )
        block: Any = DecoderBlock
        if self.remat != "none":
            # Inside a scan the loop itself keeps the compiler from merging the two passes.
            block = nn.remat(block, prevent_cse=not self.scan, policy=policy(self.remat))
        hidden = hidden_width(self.width, self.mlp_ratio)
        scale = (4 * self.depth) ** -0.5
        args = (self.width, self.heads, hidden, self.activation, scale, self.epsilon, self.dtype)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0, COLLECTION: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=1 if self.scan else self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(*args)
        self.ln_final = LayerNorm(self.epsilon)
        axes, sizes = ("embed", "vocab"), ((self.width,), (self.vocab_size,))
        self.logits = Linear(*sizes, axes, bias=False)  # in float32, as all logits

    def __call__(
        self,
        text_bld: jax.Array,
        image_bsc: jax.Array,
        image_mask_bs: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """text_bld: (b, l, d); image_bsc: (b, s, c) -> logits of the next token (b, l, v) float32.

        image_mask_bs: (b, s), False where an image's token is padding.   mask: (1, 1, l, s), which
        of the s tokens that the cache holds each of the text sees; None: those before it.
        """
        hidden = self.hidden(text_bld, image_bsc, image_mask_bs, mask=mask)
        logits: jax.Array = self.logits(hidden)
        return logits

    def hidden(
        self,
        text_bld: jax.Array,
        image_bsc: jax.Array,
        image_mask_bs: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """What `logits/kernel` (d, v) is multiplied with: (b, l, d) float32.

        For losses that never hold all logits (`captioning_loss_from_hidden`).
        """
        dtype = jnp.dtype(self.dtype)
        seen = None if image_mask_bs is None else image_mask_bs[:, None, None, :]
        mask = causal(text_bld.shape[1]) if mask is None else mask
        x, _ = self.blocks(text_bld.astype(dtype), mask, image_bsc.astype(dtype), seen)
        return self.ln_final(x)

    def flops(self, shape: tuple[int, ...]) -> int:
        """Forward FLOPs of the matrix products. shape: (l, s, c), of one text and one image."""
        (l, s, c), d = shape, self.width
        hidden = hidden_width(d, self.mlp_ratio)
        text = Stack(d, self.depth, self.heads, hidden, parent=None).flops(l)
        image = 4 * l * d**2 + 4 * s * c * d + 4 * l * s * d + 4 * l * d * hidden
        return text + self.depth * image + 2 * l * d * self.vocab_size
