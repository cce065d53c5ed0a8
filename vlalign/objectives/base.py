"""The contract of an objective, and the towers it asks for encodings.

An objective has up to two parts. `local` sees a micro-batch: it encodes what it needs, returns
terms that add up over examples, and names the arrays to keep. `across` sees what was kept from the
whole batch: there the contrastive losses live. The way never runs back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from vlalign.encoders.encoding import Encoding
from vlalign.errors import UserError, nearest

Arrays = dict[str, jax.Array]


@struct.dataclass
class Term:
    """A part of the loss as a sum and a count; whoever has both from the whole batch divides once.

    sum, count: () float32. A count of 0 (every row padded) contributes 0.
    """

    sum: jax.Array
    count: jax.Array

    @property
    def mean(self) -> jax.Array:
        """sum / count, 0 where nothing was counted."""
        one = jnp.ones((), jnp.float32)
        return jnp.where(self.count > 0, self.sum / jnp.maximum(self.count, one), 0.0 * self.sum)


@struct.dataclass
class Local:
    """What `local` gives back.

    terms: name -> Term, added over micro-batches.
    keep: name -> (b, ...), joined over micro-batches in the order of the batch.
    """

    terms: dict[str, Term] = struct.field(default_factory=dict)
    keep: Arrays = struct.field(default_factory=dict)


@struct.dataclass
class Across:
    """What `across` gives back: terms, metrics to log (scalars), and the memory's next value."""

    terms: dict[str, Term] = struct.field(default_factory=dict)
    metrics: Arrays = struct.field(default_factory=dict)
    memory: Any = None


class Towers:
    """Encodings of one (micro-)batch, each computed once however many objectives ask for it."""

    def __init__(
        self,
        model: Mapping[str, nn.Module],
        params: Mapping[str, Any],
        batch: Arrays,
        rows: jax.Array,
        rng: jax.Array,
    ):
        """model, params: by tower name.   batch: fields of the (micro-)batch.   rows: (b,) int32,
        each example's place in the whole batch.   rng: key of this step.
        """
        self.model, self.params, self.batch = model, params, batch
        self._rows, self._rng = rows, rng
        self._known: dict[tuple[str, str, str], Encoding] = {}

    @property
    def weight(self) -> jax.Array:
        """(b,) float32 weights of the examples; 0 for a padded or unreadable one."""
        return self.batch["weight"]

    def encode(self, tower: str, field: str | None = None) -> Encoding:
        """Encoding of batch field `field` (default: the tower's own name) in training mode."""
        field = tower if field is None else field
        return self._encode(tower, field, "online", self.params, train=True)

    def encode_with(
        self, params: Mapping[str, Any], name: str, tower: str, field: str | None = None
    ) -> Encoding:
        """Encoding by other parameters (a teacher, an EMA copy) in inference mode, no gradient.

        params: by tower name.   name: what these parameters are called, to remember encodings by.
        """
        field = tower if field is None else field
        return jax.lax.stop_gradient(self._encode(tower, field, name, params, train=False))

    def _encode(
        self, tower: str, field: str, name: str, params: Mapping[str, Any], *, train: bool
    ) -> Encoding:
        if tower not in self.model:
            raise UserError(f"no tower '{tower}' in the model{nearest(tower, self.model)}")
        if field not in self.batch:
            raise UserError(f"no view '{field}' in the batch{nearest(field, self.batch)}")
        key = (tower, field, name)
        if key not in self._known:
            rng = jax.random.fold_in(self._rng, _stable_hash(f"{tower}/{field}/{name}"))
            with jax.named_scope(f"{name}/{tower}"):
                self._known[key] = self.model[tower].apply(  # type: ignore[assignment]
                    {"params": params[tower]},
                    self.batch[field],
                    train=train,
                    rows=self._rows,
                    rngs={"drop": rng},
                )
        return self._known[key]


def _stable_hash(text: str) -> int:
    """A hash that does not change between processes, as Python's own does."""
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % (2**31)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of all objectives: a frozen dataclass of its hyper-parameters.

    weight: of its loss in the total.
    A subclass overrides `across`, `local`, or both; the other hooks if it owns something.
    """

    weight: float = 1.0

    def fields(self) -> tuple[str, ...]:
        """Batch fields it reads, checked before the first step."""
        return ("image", "text")

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Its own parameters at the start (trained), possibly with named axes."""
        del rng
        return {}

    def init_memory(self, params: Mapping[str, Any], batch_size: int) -> Any:
        """Its memory at the start: arrays without gradient (EMA copy, queue), or None.

        params: tower name -> parameters at the start.   batch_size: global.
        """
        del params, batch_size
        return None

    def begin(self, memory: Any, params: Mapping[str, Any], step: jax.Array) -> Any:
        """The memory at the start of a step, before anything is encoded (an EMA update)."""
        del params, step
        return memory

    def local(self, own: Mapping[str, Any], towers: Towers, memory: Any, step: jax.Array) -> Local:
        """The part over a micro-batch. own: its parameters."""
        del own, towers, memory, step
        return Local()

    def across(self, own: Mapping[str, Any], kept: Arrays, memory: Any, step: jax.Array) -> Across:
        """The part over what was kept from the whole batch."""
        del own, kept, step
        return Across(memory=memory)

    def finish(self, own: dict[str, Any]) -> dict[str, Any]:
        """Its parameters after an update: where CLIP clamps the scale."""
        return own


def normalize(x_bd: jax.Array) -> jax.Array:
    """Rows to unit length in float32; a zero row stays zero. (b, d) -> (b, d)."""
    x_bd = x_bd.astype(jnp.float32)
    square = jnp.sum(x_bd * x_bd, axis=-1, keepdims=True)
    # rsqrt of a clamped square: the gradient at zero is zero, not NaN.
    return x_bd * jax.lax.rsqrt(jnp.maximum(square, jnp.full((1, 1), 1e-24, jnp.float32)))
