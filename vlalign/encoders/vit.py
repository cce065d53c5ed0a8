"""Vision transformer (Dosovitskiy et al. 2021; CLIP and SigLIP image towers)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.encoding import Encoding
from vlalign.encoders.layers import Activation, Dtype, LayerNorm, Linear, Remat, Stack, named
from vlalign.encoders.pooling import MapHead, mean_pool
from vlalign.encoders.resize import resize_grid
from vlalign.errors import UserError


class ViT(nn.Module):
    """Images -> Encoding.

    Images of another size than at initialisation get the learned positions resized to their grid.

    patch_size: side of a square patch, pixels.      width, depth, heads: of the blocks.
    mlp_ratio: hidden width of the feed-forward layers over `width`.
    embed_dim: width of the pooled output after a linear map; None leaves it at `width`.
    pool: "class" token, "mean" of patches, or "map" (attention pooling with a learned probe).
    registers: extra learned tokens without a position (Darcet et al. 2024).
    token_drop: share of patches left out in training, at random for each image (FLIP).
    pre_norm: a LayerNorm before the first block (CLIP).
    patch_bias: whether the patch projection has a bias (SigLIP yes, CLIP no).
    activation, epsilon: of the blocks.              scan, remat: see `Stack`.
    dtype: of matrix products; norms, softmax and parameters stay float32.
    pixel_mean, pixel_std: per channel, of pixels in 0..1; uint8 input is normalised with them on
      the device, so that they travel with the weights. Float input is taken as normalised.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    embed_dim: int | None = None
    pool: Literal["class", "mean", "map"] = "class"
    registers: int = 0
    token_drop: float = 0.0
    pre_norm: bool = False
    patch_bias: bool = True
    activation: Activation = "gelu"
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across. Raises UserError if the image does not divide into them."""
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"an image of {height}x{width} pixels does not divide into patches of "
                f"patch_size={self.patch_size}; choose a multiple of it"
            )
        return height // self.patch_size, width // self.patch_size

    def _check(self) -> None:
        if self.width % self.heads:
            raise UserError(f"ViT width={self.width} does not divide into heads={self.heads}")
        if not 0.0 <= self.token_drop < 1.0:
            raise UserError(f"ViT token_drop={self.token_drop} must be in [0, 1)")

    def _patches(self, images: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, grid, patch*patch*c), row by row."""
        if images.dtype == jnp.uint8:
            mean = jnp.asarray(self.pixel_mean, jnp.float32)[None, None, None]
            std = jnp.asarray(self.pixel_std, jnp.float32)[None, None, None]
            images = (images.astype(jnp.float32) / 255.0 - mean) / std
        b, height, width, c = images.shape
        rows, columns = self.grid(height, width)
        p = self.patch_size
        x = images.reshape(b, rows, p, columns, p, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, p * p * c)

    def _drop(self, x_bld: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Keeps a random part of the patches of each image; `rows` number the examples."""
        b, l, _ = x_bld.shape
        keep = max(1, int(l * (1 - self.token_drop)))
        if rows is None:
            rows = jnp.arange(b, dtype=jnp.int32)
        # A key for each row of the whole batch: the same tokens go however it is cut up.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("drop"), rows)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (l,)))(keys)
        kept = jnp.argsort(noise, axis=1)[:, :keep]
        return jnp.take_along_axis(x_bld, kept[:, :, None], axis=1)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """images: (b, h, w, 3) uint8, or float already normalised -> Encoding.

        train: drop tokens (needs the rng stream "drop").   rows: (b,) int32, each example's place
        in the whole batch, so that micro-batches draw the same random numbers.
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
        x = x + self._position(grid).astype(x.dtype)[None]
        if train and self.token_drop > 0:
            x = self._drop(x, rows)
        x = self._prepend(x)
        if self.pre_norm:
            x = LayerNorm(self.epsilon, name="ln_pre")(x).astype(x.dtype)
        x = self._stack()(x)
        x = LayerNorm(self.epsilon, name="ln_post")(x)
        mask = jnp.ones(x.shape[:2], bool)
        return Encoding(pooled=self._pool(x, mask), tokens=x, mask=mask)

    def _position(self, grid: tuple[int, int]) -> jax.Array:
        """(l, d) of a grid; of another one than the parameter's, which then must be a square."""
        length, d = grid[0] * grid[1], self.width
        if self.has_variable("params", "position"):
            length = self.get_variable("params", "position").shape[0]
        init = named(nn.initializers.normal(d**-0.5), "length", "embed")
        position = self.param("position", init, (length, d), jnp.float32)
        if length == grid[0] * grid[1]:
            return position
        return resize_grid(position, (math.isqrt(length),) * 2, grid)

    def _prepend(self, x_bld: jax.Array) -> jax.Array:
        """Class token first, then registers, then patches."""
        b, _, d = x_bld.shape
        normal = nn.initializers.normal(d**-0.5)
        if self.registers:
            init = named(normal, None, "embed")
            extra = self.param("registers", init, (self.registers, d), jnp.float32)
            extra = jnp.broadcast_to(extra.astype(x_bld.dtype)[None], (b, self.registers, d))
            x_bld = jnp.concatenate([extra, x_bld], axis=1)
        if self.pool == "class":
            token = self.param("class_token", named(normal, None, "embed"), (1, d), jnp.float32)
            token = jnp.broadcast_to(token.astype(x_bld.dtype)[None], (b, 1, d))
            x_bld = jnp.concatenate([token, x_bld], axis=1)
        return x_bld

    def _pool(self, x_bld: jax.Array, mask: jax.Array) -> jax.Array:
        if self.pool == "class":
            pooled = x_bld[:, 0]
        elif self.pool == "mean":
            pooled = mean_pool(x_bld[:, self.registers :], mask[:, self.registers :])
        else:
            pooled = self._map_head()(x_bld, mask)
        if self.embed_dim is not None:
            axes = ("embed", "joint")
            pooled = Linear((self.width,), (self.embed_dim,), axes, bias=False, name="proj")(pooled)
        return pooled.astype(jnp.float32)

    def _stack(self) -> Stack:
        return Stack(
            self.width,
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            self.activation,
            self.epsilon,
            self.scan,
            self.remat,
            self.dtype,
            name="transformer",
        )

    def _map_head(self) -> MapHead:
        hidden = int(self.width * self.mlp_ratio)
        args = (self.width, self.heads, hidden, self.activation, self.epsilon, self.dtype)
        return MapHead(*args, name="map")

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one image of `shape` (h, w, 3)."""
        rows, columns = self.grid(shape[0], shape[1])
        patches = rows * columns
        total = 2 * patches * self.patch_size**2 * 3 * self.width
        kept = max(1, int(patches * (1 - self.token_drop))) if train else patches
        length = kept + self.registers + (self.pool == "class")
        # parent=None: these are read for their numbers, outside of any scope.
        hidden = int(self.width * self.mlp_ratio)
        stack = Stack(self.width, self.depth, self.heads, hidden, parent=None)
        total += stack.flops(length)
        if self.pool == "map":
            head = MapHead(
                self.width, self.heads, hidden, self.activation, 0.0, self.dtype, parent=None
            )
            total += head.flops(length)
        return total + 2 * self.width * (self.embed_dim or 0)
