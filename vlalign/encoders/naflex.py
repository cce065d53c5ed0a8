"""A vision transformer for images of any shape: NaFlex (SigLIP 2, arXiv:2502.14786, section 2.4).

Letters: b rows of the batch, k images of a row, n patches of a row, p pixels of a patch times 3,
g side of the grid of learned positions, d width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.blocks import BlockSpec, stack_of
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.layers import NORMS, Activation, Dtype, Linear, named
from vlalign.encoders.pixels import Channels, normalise
from vlalign.encoders.pooling import map_head_of
from vlalign.encoders.remat import Remat
from vlalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each patch of a row stands.

    segment: (b, n) int32, which image of the row it is of; k for padding.
    place, shape: (b, n, 2) int32, its row and column, and how many of them its image has.
    real: (b, n) bool, False for padding.   fits: (b,) bool, whether no image's patches are missing.
    """

    segment: jax.Array
    place: jax.Array
    shape: jax.Array
    real: jax.Array
    fits: jax.Array


def places_of(shapes_bk2: jax.Array, length: int) -> Places:
    """Places of `length` patches, from rows and columns of the images that follow each other.

    shapes_bk2: (b, k, 2) int32; 0, 0 for no image.
    """
    shapes = shapes_bk2.astype(jnp.int32)
    counts_bk = jnp.prod(shapes, axis=2)
    ends_bk = jnp.cumsum(counts_bk, axis=1)
    index = jnp.arange(length, dtype=jnp.int32)[None]
    segment = jnp.sum(index[:, :, None] >= ends_bk[:, None, :], axis=2, dtype=jnp.int32)
    images = shapes.shape[1]
    real = segment < images
    own = jnp.minimum(segment, images - 1)
    # Padding is as if each patch was an image of its own.
    shape = jnp.take_along_axis(shapes, own[:, :, None], axis=1)
    shape = jnp.where(real[:, :, None], shape, 1)
    start = jnp.take_along_axis(ends_bk - counts_bk, own, axis=1)
    within = jnp.where(real, index - start, 0)
    columns = shape[:, :, 1]
    place = jnp.stack([within // columns, within % columns], axis=2)
    return Places(segment, place, shape, real, fits=ends_bk[:, -1] <= length)


def resize_weights(place: jax.Array, size: jax.Array, old: int) -> jax.Array:
    """How much of each of `old` positions is in that of a place: (...) -> (..., old) float32.

    Antialiased linear: a triangle of width max(1, old / size) around the place, as torch's
    `interpolate` and `jax.image.resize` weigh. place: 0 .. size - 1.
    """
    scale = old / size.astype(jnp.float32)
    centre = (place.astype(jnp.float32) + 0.5) * scale
    offset = jnp.arange(old, dtype=jnp.float32) + 0.5
    offset = offset.reshape((1,) * place.ndim + (old,)) - centre[..., None]
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(offset) / jnp.maximum(scale, 1.0)[..., None])
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


class NaflexViT(nn.Module):
    """Rows of patches -> Encoding. The defaults are SigLIP 2's base model.

    A row holds the patches of one image, or of several behind each other, which do not see each
    other; the rest is padding. `pooled` is (b * k, d): the row's first image, its second ...; that
    of an image that is not there is finite and says nothing. If a row's images have more patches
    than the row, all of its pooled outputs are nan.

    patch_size, width, depth, heads, mlp_ratio, embed_dim, bias, block, activation, epsilon, scan,
    remat, dtype: as in `ViT`.   positions: side of the square grid of learned positions, which are
    resized to the grid of each image, see `resize_weights`.
    pool: "map" (attention pooling with a learned probe) or the "mean" of an image's patches.
    pixel_mean, pixel_std: as in `ViT`, of uint8 patches.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    embed_dim: int | None = None
    bias: bool = False
    positions: int = 16
    pool: Literal["map", "mean"] = "map"
    block: BlockSpec = BlockSpec()
    activation: Activation = "gelu_tanh"
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    pixel_mean: Channels = (0.5, 0.5, 0.5)
    pixel_std: Channels = (0.5, 0.5, 0.5)

    def _check(self, patches: tuple[int, ...], shapes: tuple[int, ...]) -> None:
        if self.width % self.heads:
            raise UserError(f"NaflexViT width={self.width} does not divide into heads={self.heads}")
        if self.bias and self.embed_dim is None:
            raise UserError("NaflexViT bias=True is that of the output map: set embed_dim too")
        if self.block.attention.rotary is not None:
            raise UserError("NaflexViT has learned positions: leave out block.attention.rotary")
        pixels = self.patch_size**2 * 3
        if len(patches) != 3 or patches[2] != pixels:
            raise UserError(
                f"NaflexViT patch_size={self.patch_size} wants patches (rows, patches, {pixels}), "
                f"not {patches}"
            )
        if len(shapes) != 3 or shapes[0] != patches[0] or shapes[2] != 2:
            raise UserError(
                f"NaflexViT wants shapes ({patches[0]}, images of a row, 2), not {shapes}"
            )

    @nn.compact
    def __call__(
        self,
        images: Mapping[str, jax.Array],
        *,
        train: bool = False,
        rows: jax.Array | None = None,
    ) -> Encoding:
        """images: `patches` (b, n, p) uint8, or float already normalised, and `shapes` (b, k, 2).

        A patch is row by row, channels last; `shapes` are rows and columns of the images of a row,
        0, 0 behind the last. train: drop branches, where `block` says so (needs the rng stream
        "drop").   rows: (b,) int32, each row's place in the whole batch.
        """
        patches, shapes = images["patches"], images["shapes"]
        self._check(patches.shape, shapes.shape)
        b, n, p = patches.shape
        d, k = self.width, shapes.shape[1]
        pixels = normalise(patches.reshape(b, n, p // 3, 3), self.pixel_mean, self.pixel_std)
        places = places_of(shapes, n)
        embed = Linear((p,), (d,), ("patch", "embed"), dtype=self.dtype, name="patch")
        x = embed(pixels.reshape(b * n, p)).reshape(b, n, d)
        x = x + self._position(places).astype(x.dtype)
        x = stack_of(self, self.block, name="transformer")(
            x, _mask(places, k), train=train, rows=rows
        )
        x = NORMS[self.block.norm](self.epsilon, name="ln_post")(x)
        own = places.segment[:, None, :] == jnp.arange(k, dtype=jnp.int32)[None, :, None]
        pooled = self._project(self._pool(x, own)).astype(jnp.float32)
        pooled = jnp.where(jnp.repeat(places.fits, k)[:, None], pooled, jnp.nan)
        return Encoding(pooled=pooled, tokens=x.astype(jnp.float32), mask=places.real)

    def _position(self, places: Places) -> jax.Array:
        """Each patch's position: (b, n, d) float32."""
        g, d = self.positions, self.width
        init = named(nn.initializers.normal(d**-0.5), "length", "embed")
        position = self.param("position", init, (g * g, d), jnp.float32)
        down, across = (
            resize_weights(places.place[:, :, axis], places.shape[:, :, axis], g) for axis in (0, 1)
        )
        weights = down[:, :, :, None] * across[:, :, None, :]
        return weights.reshape(*down.shape[:2], g * g) @ position

    def _pool(self, x_bnd: jax.Array, own_bkn: jax.Array) -> jax.Array:
        """(b * k, d), each of the patches that are its own."""
        if self.pool == "map":
            return map_head_of(self, self.heads, name="map")(x_bnd, own_bkn)
        own = own_bkn.astype(x_bnd.dtype)
        count = jnp.maximum(jnp.sum(own, axis=2, keepdims=True), 1.0)
        return jnp.einsum("bkn,bnd->bkd", own / count, x_bnd).reshape(-1, self.width)

    def _project(self, pooled: jax.Array) -> jax.Array:
        if self.embed_dim is None:
            return pooled
        axes = ("embed", "joint")
        return Linear((self.width,), (self.embed_dim,), axes, bias=self.bias, name="proj")(pooled)

    def flops(self, shape: tuple[int, ...], *, images: int = 1, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one row of `shape` (n, p) with `images` in it.

        Padding costs what patches do.
        """
        del train
        n, p = shape
        total = 2 * n * (p + self.positions**2) * self.width
        # parent=None: these are read for their numbers, outside of any scope.
        total += stack_of(self, self.block, parent=None).flops(n)
        if self.pool == "map":
            total += map_head_of(self, self.heads, parent=None).flops(n, images)
        else:
            total += 2 * images * n * self.width
        return total + 2 * images * self.width * (self.embed_dim or 0)


def _mask(places: Places, images: int) -> jax.Array:
    """What attention may see: the patches, or of several images each its own."""
    if images == 1:
        return places.real[:, None, None, :]
    return (places.segment[:, :, None] == places.segment[:, None, :])[:, None]
