"""What every encoder returns."""

import jax
from flax import struct


@struct.dataclass
class Encoding:
    """One tower's view of a batch.

    pooled: (b, d) the embedding, before normalisation.
    tokens: (b, l, w) the last hidden states, behind the last norm where the tower has it there.
    mask: (b, l) bool, False where a token is padding.
    """

    pooled: jax.Array
    tokens: jax.Array
    mask: jax.Array
