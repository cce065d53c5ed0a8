"""Vision transformer (Dosovitskiy et al. 2021; CLIP and SigLIP image towers)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.blocks import BlockSpec, stack_of
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.layers import NORMS, Activation, Dtype, Linear, named, uniform_by_row
from vlalign.encoders.pixels import normalise
from vlalign.encoders.pooling import map_head_of, mean_pool
from vlalign.encoders.positions import sincos_grid
from vlalign.encoders.remat import Remat
from vlalign.encoders.resize import Resize, resize_grid
from vlalign.errors import UserError


class ViT(nn.Module):
    """Images -> Encoding.

    Images of another size than at initialisation get the learned positions resized to their grid.

    patch_size: side of a square patch, pixels.      width, depth, heads: of the blocks.
    uneven: of an image that does not divide into patches, an "error", or "crop": the pixels that
      fill none, right and below, are not read (SigLIP So400m/14 at 384).
    mlp_ratio: hidden width of the feed-forward layers over `width`.
    embed_dim: width of the pooled output after a linear map; None leaves it at `width`.
    bias: whether that map has a bias (EVA).
    pool: "class" token, "mean" of patches, or "map" (attention pooling with a learned probe).
    pool_heads: heads of "map"; None: as many as the blocks have.
    class_token: a class token beside the patches even where `pool` does not read it (CLIPA).
    registers: extra learned tokens without a position (Darcet et al. 2024).
    position: what is added to the patches: "learned", "sincos" (see `sincos_grid`; CLIPA) or "none"
      (DINOv3, whose `block.attention.rotary` knows the places).
    position_resize: how learned positions go to another grid, see `resize_grid`.
    token_drop: share of patches left out in training, at random for each image (FLIP).
    pre_norm: a norm before the first block (CLIP).
    final_norm: what the last norm is of: all "tokens", or the "pooled" vector alone, as CLIPA has
      it, and EVA and DINOv2 with the mean; the tokens that are returned then have none; "none":
      nothing has one (CoCa, which pools before it).
    patch_bias: whether the patch projection has a bias (SigLIP yes, CLIP no).
    block: what else of the blocks can be chosen.    activation, epsilon: of the blocks.
    scan, remat: see `Stack`.
    dtype: of matrix products; norms, softmax and parameters stay float32.
    pixel_mean, pixel_std: per channel, of pixels in 0..1; uint8 input is normalised with them on
      the device, so that they travel with the weights. Float input is taken as normalised.
    """

    patch_size: int = 16
    uneven: Literal["error", "crop"] = "error"
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    embed_dim: int | None = None
    bias: bool = False
    pool: Literal["class", "mean", "map"] = "class"
    pool_heads: int | None = None
    class_token: bool = False
    registers: int = 0
    position: Literal["learned", "sincos", "none"] = "learned"
    position_resize: Resize = "bicubic"
    token_drop: float = 0.0
    pre_norm: bool = False
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    patch_bias: bool = True
    block: BlockSpec = BlockSpec()
    activation: Activation = "gelu"
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across. Raises UserError if the image does not divide into them."""
        divides = height % self.patch_size == 0 and width % self.patch_size == 0
        if not divides and (self.uneven == "error" or min(height, width) < self.patch_size):
            raise UserError(
                f"an image of {height}x{width} pixels does not divide into patches of "
                f"patch_size={self.patch_size}; choose a multiple of it"
            )
        return height // self.patch_size, width // self.patch_size

    def _check(self) -> None:
        if self.width % self.heads:
            raise UserError(f"ViT width={self.width} does not divide into heads={self.heads}")
        if self.pool_heads is not None and (self.pool != "map" or self.width % self.pool_heads):
            raise UserError(
                f'ViT pool_heads={self.pool_heads} belongs to pool="map" and must divide '
                f"width={self.width}"
            )
        if self.bias and self.embed_dim is None:
            raise UserError("ViT bias=True is that of the output map: set embed_dim too")
        if not 0.0 <= self.token_drop < 1.0:
            raise UserError(f"ViT token_drop={self.token_drop} must be in [0, 1)")

    def _patches(self, images: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, grid, patch*patch*c), row by row."""
        images = normalise(images, self.pixel_mean, self.pixel_std)
        b, height, width, c = images.shape
        rows, columns = self.grid(height, width)
        p = self.patch_size
        images = images[:, : rows * p, : columns * p]
        x = images.reshape(b, rows, p, columns, p, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, p * p * c)

    def _kept(self, batch: int, length: int, rows: jax.Array | None) -> jax.Array:
        """Which patches of each image stay: (b, kept); `rows` number the examples."""
        keep = max(1, int(length * (1 - self.token_drop)))
        if rows is None:
            rows = jnp.arange(batch, dtype=jnp.int32)
        noise = uniform_by_row(self.make_rng("drop"), rows, length)
        return jnp.argsort(noise, axis=1)[:, :keep]

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """images: (b, h, w, 3) uint8, or float already normalised -> Encoding.

        train: drop tokens and branches (needs the rng stream "drop").   rows: (b,) int32, each
        example's place in the whole batch, so that micro-batches draw the same random numbers.
        """
        self._check()
        grid = self.grid(images.shape[1], images.shape[2])
        patches = self._patches(images)
        b, l, p = patches.shape
        d = self.width
        embed = Linear(
            (p,), (d,), ("patch", "embed"), bias=self.patch_bias, dtype=self.dtype, name="patch"
        )
        x = embed(patches.reshape(b * l, p)).reshape(b, l, d)
        if self.position != "none":
            x = x + self._position(grid).astype(x.dtype)[None]
        kept = self._kept(b, l, rows) if train and self.token_drop > 0 else None
        if kept is not None:
            x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
        norm = NORMS[self.block.norm]
        x = self._prepend(x)
        if self.pre_norm:
            x = norm(self.epsilon, name="ln_pre")(x).astype(x.dtype)
        x = stack_of(self, self.block, name="transformer")(
            x, turns=self._turns(grid, kept), train=train, rows=rows
        )
        after = norm(self.epsilon, name="ln_post")
        if self.final_norm == "tokens":
            x = after(x)
        mask = jnp.ones(x.shape[:2], bool)
        pooled = self._pool(x, mask)
        if self.final_norm == "pooled":
            pooled = after(pooled)
        return Encoding(pooled=self._project(pooled), tokens=x.astype(jnp.float32), mask=mask)

    @property
    def _prefix(self) -> int:
        """Tokens in front of the patches."""
        return (self.class_token or self.pool == "class") + self.registers

    def _turns(
        self, grid: tuple[int, int], kept: jax.Array | None
    ) -> tuple[jax.Array, jax.Array] | None:
        """cos and sin of the rotary positions of all tokens, or of the kept ones of each image."""
        rotary = self.block.attention.rotary
        if rotary is None:
            return None
        cos, sin = rotary.tables(grid, self.width // self.heads, self._prefix)
        if kept is None:
            return cos, sin
        front = jnp.arange(self._prefix, dtype=kept.dtype)[None]
        front = jnp.broadcast_to(front, (kept.shape[0], self._prefix))
        places = jnp.concatenate([front, kept + self._prefix], axis=1)
        return jnp.take(cos[0], places, axis=0), jnp.take(sin[0], places, axis=0)

    def _position(self, grid: tuple[int, int]) -> jax.Array:
        """(l, d) of a grid; of another one than the parameter's, which then must be a square."""
        length, d = grid[0] * grid[1], self.width
        if self.position == "sincos":
            return jnp.asarray(sincos_grid(grid, d))
        if self.has_variable("params", "position"):
            length = self.get_variable("params", "position").shape[0]
        init = named(nn.initializers.normal(d**-0.5), "length", "embed")
        position = self.param("position", init, (length, d), jnp.float32)
        if length == grid[0] * grid[1]:
            return position
        return resize_grid(position, (math.isqrt(length),) * 2, grid, self.position_resize)

    def _prepend(self, x_bld: jax.Array) -> jax.Array:
        """Class token first, then registers, then patches."""
        b, _, d = x_bld.shape
        normal = nn.initializers.normal(d**-0.5)
        if self.registers:
            init = named(normal, None, "embed")
            extra = self.param("registers", init, (self.registers, d), jnp.float32)
            extra = jnp.broadcast_to(extra.astype(x_bld.dtype)[None], (b, self.registers, d))
            x_bld = jnp.concatenate([extra, x_bld], axis=1)
        if self.class_token or self.pool == "class":
            token = self.param("class_token", named(normal, None, "embed"), (1, d), jnp.float32)
            token = jnp.broadcast_to(token.astype(x_bld.dtype)[None], (b, 1, d))
            x_bld = jnp.concatenate([token, x_bld], axis=1)
        return x_bld

    def _pool(self, x_bld: jax.Array, mask: jax.Array) -> jax.Array:
        if self.pool == "class":
            return x_bld[:, 0]
        if self.pool == "mean":
            return mean_pool(x_bld[:, self._prefix :], mask[:, self._prefix :])
        return map_head_of(self, self.pool_heads or self.heads, name="map")(x_bld, mask)

    def _project(self, pooled: jax.Array) -> jax.Array:
        if self.embed_dim is not None:
            axes = ("embed", "joint")
            proj = Linear((self.width,), (self.embed_dim,), axes, bias=self.bias, name="proj")
            pooled = proj(pooled)
        return pooled.astype(jnp.float32)

    def length(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Tokens of one image of `shape` (h, w, 3)."""
        patches = math.prod(self.grid(shape[0], shape[1]))
        kept = max(1, int(patches * (1 - self.token_drop))) if train else patches
        return kept + self._prefix

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one image of `shape` (h, w, 3)."""
        length = self.length(shape, train=train)
        total = 2 * math.prod(self.grid(shape[0], shape[1])) * self.patch_size**2 * 3 * self.width
        # parent=None: these are read for their numbers, outside of any scope.
        total += stack_of(self, self.block, parent=None).flops(length)
        if self.pool == "map":
            total += map_head_of(self, self.pool_heads or self.heads, parent=None).flops(length)
        return total + 2 * self.width * (self.embed_dim or 0)
