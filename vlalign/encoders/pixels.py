"""Pixels as the towers want them."""

import jax
import jax.numpy as jnp

Channels = tuple[float, float, float]

# Of the red, green and blue of OpenAI's 400 million images (github.com/openai/CLIP, `clip.py`).
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)


def normalise(images: jax.Array, mean: Channels, std: Channels) -> jax.Array:
    """uint8 pixels -> float32 (pixel / 255 - mean) / std; floats are taken as normalised.

    images: (b, h, w, 3).   mean, std: per channel, of pixels in 0..1.
    """
    if images.dtype != jnp.uint8:
        return images
    mean_c = jnp.asarray(mean, jnp.float32)[None, None, None]
    std_c = jnp.asarray(std, jnp.float32)[None, None, None]
    return (images.astype(jnp.float32) / 255.0 - mean_c) / std_c
