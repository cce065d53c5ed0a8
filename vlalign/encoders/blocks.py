"""Transformer blocks and their stack, shared by the towers.

Letters: b batch, l tokens, n = b*l flattened tokens, d width, h heads, k head width, m MLP width.
Tokens are flattened to two axes around the products of the feed-forward layers: on CPU those with
three are a third slower, on TPU and GPU they are the same.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import Attention, AttentionSpec
from vlalign.encoders.cache import COLLECTION
from vlalign.encoders.layers import (
    ACTIVATIONS,
    NORMS,
    Activation,
    Dtype,
    Linear,
    NormKind,
    named,
    uniform_by_row,
)
from vlalign.encoders.remat import Remat, mark, policy
from vlalign.errors import UserError
from vlalign.parallel.constraint import shard_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """What of a tower's blocks can be chosen; the defaults are CLIP's.

    order: where the norm of a branch f stands: "pre" x + f(norm(x)), "post" norm(x + f(x)) (BERT),
      "branch" x + norm(f(x)) (EVA-02 E, Swin V2).
    norm: "layer" or "rms".
    feed_forward: "mlp" down(act(up(x))), or "gated" down(act(gate(x)) * up(x)), which is SwiGLU
      with the activation "silu" (Shazeer 2020, arXiv:2002.05202).
    bias: whether the maps of the feed-forward layer have one.
    inner_norm: a norm of the hidden units before `down` (EVA's sub-LN).
    layer_scale: initial value of a learned scale of each branch's channels (Touvron et al. 2021,
      CaiT); None: no scale.
    drop_path: share of examples whose branches the last block leaves out in training, at random
      for each example; it grows linearly from 0 at the first block (Huang et al. 2016).
    attention: see `AttentionSpec`.
    """

    order: Literal["pre", "post", "branch"] = "pre"
    norm: NormKind = "layer"
    feed_forward: Literal["mlp", "gated"] = "mlp"
    bias: bool = True
    inner_norm: bool = False
    layer_scale: float | None = None
    drop_path: float = 0.0
    attention: AttentionSpec = AttentionSpec()

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"BlockSpec drop_path={self.drop_path} must be in [0, 1)")


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Whole hidden units of `width * mlp_ratio`, where a ratio like 4304 / 1152 gives 4304."""
    return int(width * mlp_ratio + 1e-6)


class Mlp(nn.Module):
    """Feed-forward layer: x (n, d) -> (n, d).

    width: d.   hidden: m.   activation: between the products.
    depth_scale: of the last kernel (1/sqrt(2 L) keeps the stream's variance over L layers).
    spec: which kind; of it, `feed_forward`, `bias`, `inner_norm` and `norm` count here.
    epsilon: of the inner norm.
    """

    width: int
    hidden: int
    activation: Activation
    depth_scale: float = 1.0
    dtype: Dtype = "float32"
    spec: BlockSpec = BlockSpec()
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_nd: jax.Array) -> jax.Array:
        """x_nd: (n, d) -> (n, d)."""
        spec, d, m = self.spec, (self.width,), (self.hidden,)

        def into(name: str) -> jax.Array:
            linear = Linear(d, m, ("embed", "mlp"), bias=spec.bias, dtype=self.dtype, name=name)
            return mark(linear(x_nd), "mlp_hidden")

        activation = ACTIVATIONS[self.activation]
        if spec.feed_forward == "gated":
            x = activation(into("gate")) * into("up")
        else:
            x = activation(into("up"))
        if spec.inner_norm:
            x = NORMS[spec.norm](self.epsilon, ("mlp",), name="norm")(x).astype(x.dtype)
        down = Linear(
            m,
            d,
            ("mlp", "embed"),
            bias=spec.bias,
            scale=self.depth_scale,
            dtype=self.dtype,
            name="down",
        )
        return down(x)


class LayerScale(nn.Module):
    """A learned scale of each channel: x (..., d) -> (..., d).   initial: its value at first."""

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., d) -> (..., d) in the dtype of x."""
        init = named(nn.initializers.constant(self.initial), "embed")
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        return x * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


class Block(nn.Module):
    """Residual block: attention, then a feed-forward layer, each a branch beside the stream.

    width, heads, hidden: d, h, m.   depth_scale: of both output kernels.   epsilon: of the norms.
    spec: the choices.
    """

    width: int
    heads: int
    hidden: int
    activation: Activation
    depth_scale: float
    epsilon: float
    dtype: Dtype
    spec: BlockSpec = BlockSpec()

    @nn.compact
    def __call__(
        self,
        x_bld: jax.Array,
        mask: jax.Array | None,
        turns: tuple[jax.Array, jax.Array] | None = None,
        keep_2b: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """x_bld: (b, l, d) -> (b, l, d), and None as `nn.scan` wants a second output.

        mask: see `attend`.   turns: see `Attention`.   keep_2b: factor of each branch of each
        example, 0 where it is left out.
        """
        x_bld = shard_batch(x_bld)
        b, l, d = x_bld.shape
        spec = self.spec
        attention = Attention(
            self.width,
            self.heads,
            self.depth_scale,
            self.dtype,
            spec.attention,
            spec.norm,
            self.epsilon,
            name="attn",
        )
        keep = None if keep_2b is None else keep_2b[0].reshape(b, 1, 1)
        x = self._branch(x_bld, lambda x: attention(x, mask, turns), "1", keep).reshape(b * l, d)
        mlp = Mlp(
            self.width,
            self.hidden,
            self.activation,
            self.depth_scale,
            self.dtype,
            spec,
            self.epsilon,
            name="mlp",
        )
        if keep_2b is not None:
            keep = jnp.broadcast_to(keep_2b[1][:, None], (b, l)).reshape(b * l, 1)
        x = self._branch(x, mlp, "2", keep)
        return x.reshape(b, l, d), None

    def _branch(self, x: jax.Array, branch: Any, number: str, keep: jax.Array | None) -> jax.Array:
        """The stream with one branch added; `number` ends the names of its norm and scale."""
        spec = self.spec
        norm = NORMS[spec.norm](self.epsilon, name=f"ln_{number}")
        y = branch(norm(x).astype(x.dtype)) if spec.order == "pre" else branch(x)
        if spec.order == "branch":
            y = norm(y).astype(x.dtype)
        if spec.layer_scale is not None:
            y = LayerScale(spec.layer_scale, name=f"ls_{number}")(y)
        if keep is not None:
            y = y * keep.astype(y.dtype)
        return norm(x + y).astype(x.dtype) if spec.order == "post" else x + y


class Stack(nn.Module):
    """A stack of equal blocks, parameters with a leading `layers` axis whether scanned or not.

    depth: number of blocks.   scan: one compiled body for all blocks (compile time independent of
    depth) or all of them unrolled (faster on CPU).   remat: what the backward pass keeps of a
    block, by the names in `remat.py`; a scanned stack keeps it in arrays over all layers.
    block: what of the blocks can be chosen.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: Activation = "gelu"
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    block: BlockSpec = BlockSpec()

    @nn.compact
    def __call__(
        self,
        x_bld: jax.Array,
        mask: jax.Array | None = None,
        *,
        turns: tuple[jax.Array, jax.Array] | None = None,
        train: bool = False,
        rows: jax.Array | None = None,
    ) -> jax.Array:
        """x_bld: (b, l, d); mask: broadcastable to (b, h, l, l) -> (b, l, d).

        turns: cos and sin of the rotary positions, see `Rotary.tables`.   train, rows: whether
        branches are left out (needs the rng stream "drop"), and each example's place in the batch.
        """
        if (turns is None) != (self.block.attention.rotary is None):
            raise UserError("block.attention.rotary needs a tower that gives its tokens places")
        block: Any = Block
        if self.remat != "none":
            # Inside a scan the loop itself keeps the compiler from merging the two passes.
            block = nn.remat(Block, prevent_cse=not self.scan, policy=policy(self.remat))
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, COLLECTION: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=self.depth,
            unroll=1 if self.scan else self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            self.width,
            self.heads,
            self.hidden,
            self.activation,
            (2 * self.depth) ** -0.5,
            self.epsilon,
            self.dtype,
            self.block,
            name="blocks",
        )
        keep = self._keep(x_bld.shape[0], rows) if train and self.block.drop_path else None
        x_bld, _ = blocks(x_bld, mask, turns, keep)
        return x_bld

    def _keep(self, batch: int, rows: jax.Array | None) -> jax.Array:
        """Factors of the branches, 0 or 1 / (1 - rate): (layers, 2, b) float32."""
        if rows is None:
            rows = jnp.arange(batch, dtype=jnp.int32)
        rates = jnp.linspace(0.0, self.block.drop_path, self.depth, dtype=jnp.float32)
        noise = uniform_by_row(self.make_rng("drop"), rows, self.depth * 2)
        noise = noise.T.reshape(self.depth, 2, batch)
        rates = rates[:, None, None]
        return jnp.where(noise >= rates, 1.0 / (1.0 - rates), 0.0)

    def flops(self, length: int) -> int:
        """Forward FLOPs of the matrix products for one example of `length` tokens."""
        maps = 3 if self.block.feed_forward == "gated" else 2
        projections = 2 * length * (4 * self.width**2 + maps * self.width * self.hidden)
        attention = 4 * length**2 * self.width
        return self.depth * (projections + attention)


def stack_of(tower: Any, block: BlockSpec, **scope: Any) -> Stack:
    """The stack of a tower with the usual fields (width, depth, heads, mlp_ratio, ...).

    scope: `name`, or `parent=None` for one that is only asked for its numbers.
    """
    return Stack(
        tower.width,
        tower.depth,
        tower.heads,
        hidden_width(tower.width, tower.mlp_ratio),
        tower.activation,
        tower.epsilon,
        tower.scan,
        tower.remat,
        tower.dtype,
        block,
        **scope,
    )
