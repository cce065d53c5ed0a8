"""One signature for our contrastive losses and for the same losses as others write them.

A form takes `Pairs` and returns the mean loss. "softmax" is CLIP's, "sigmoid" SigLIP's, "soft" has
ALBEF's targets: the positives mixed with a teacher's distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from vlalign.losses.contrast import Teacher, sigmoid_contrast, softmax_contrast

NAMES = ("softmax", "sigmoid", "soft")
ALPHA = 0.4
# The mesh axis that cuts the batch.
AXIS = "data"


class Pairs(NamedTuple):
    """Unit-norm embeddings (B, d) of the student and of the teacher, scale and bias ()."""

    x: jax.Array
    y: jax.Array
    scale: jax.Array
    bias: jax.Array
    teacher_x: jax.Array
    teacher_y: jax.Array


Form = Callable[[Pairs], jax.Array]


def ours(name: str, *, route: str = "gather", block: int | None = None) -> Form:
    """The kernel of vlalign; block: None for the tiles that it takes itself."""

    def loss(p: Pairs) -> jax.Array:
        options = {"logit_scale": p.scale, "block_size": block, "route": route}
        if name == "sigmoid":
            return sigmoid_contrast(p.x, p.y, logit_bias=p.bias, **options).mean
        teacher = Teacher(p.teacher_x, p.teacher_y, p.scale, ALPHA) if name == "soft" else None
        return softmax_contrast(p.x, p.y, teacher=teacher, **options).mean

    return loss


def softmax_dense(p: Pairs) -> jax.Array:
    """CLIP: one product, both directions from it; the positives are picked from the (B, B)."""
    logits = p.scale * (p.x @ p.y.T)
    lse = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(0.5 * lse - jnp.diagonal(logits))


def sigmoid_dense(p: Pairs) -> jax.Array:
    """SigLIP: labels of all pairs, as in big_vision."""
    logits = p.scale * (p.x @ p.y.T) + p.bias
    labels = 2.0 * jnp.eye(p.x.shape[0], dtype=p.x.dtype) - 1.0
    return -jnp.sum(jax.nn.log_sigmoid(labels * logits)) / p.x.shape[0]


def soft_dense(p: Pairs) -> jax.Array:
    """ALBEF: two products, targets mixed with the identity, both directions."""
    logits = p.scale * (p.x @ p.y.T)
    teacher = lax.stop_gradient(p.scale * (p.teacher_x @ p.teacher_y.T))
    one_hot = jnp.eye(p.x.shape[0], dtype=p.x.dtype)
    losses = [
        -jnp.sum(
            ((1.0 - ALPHA) * one_hot + ALPHA * jax.nn.softmax(teacher, axis))
            * jax.nn.log_softmax(logits, axis)
        )
        for axis in (0, 1)
    ]
    return 0.5 * (losses[0] + losses[1]) / p.x.shape[0]


# On one device the dense form; under jit on sharded arrays the "global" form of big_vision.
DENSE: dict[str, Form] = {"softmax": softmax_dense, "sigmoid": sigmoid_dense, "soft": soft_dense}


def local(name: str) -> Form:
    """The form of open_clip (`local_loss`, `gather_with_grad`): each device's rows of (B, B).

    Both sides are gathered; a device has (b, B) logits for each direction.
    """

    def on_device(p: Pairs) -> jax.Array:
        x, y = gather(p.x), gather(p.y)
        rows, columns = p.scale * (p.x @ y.T), p.scale * (p.y @ x.T)
        labels = lax.axis_index(AXIS) * p.x.shape[0] + jnp.arange(p.x.shape[0])
        one_hot = jax.nn.one_hot(labels, x.shape[0], dtype=p.x.dtype)
        if name == "sigmoid":
            return -jnp.sum(jax.nn.log_sigmoid((2.0 * one_hot - 1.0) * (rows + p.bias)))
        targets = [one_hot, one_hot]
        if name == "soft":
            tx, ty = gather(p.teacher_x), gather(p.teacher_y)
            scores = p.scale * (p.teacher_x @ ty.T), p.scale * (p.teacher_y @ tx.T)
            soft = [jax.nn.softmax(lax.stop_gradient(s), axis=1) for s in scores]
            targets = [(1.0 - ALPHA) * one_hot + ALPHA * q for q in soft]
        losses = [
            -jnp.sum(target * jax.nn.log_softmax(logits, axis=1))
            for target, logits in zip(targets, (rows, columns), strict=True)
        ]
        return 0.5 * (losses[0] + losses[1])

    return on_devices(on_device)


def on_devices(on_device: Form) -> Form:
    """The mean over the batch of a form that sums over a device's rows; on the mesh in use."""
    batch, whole = PartitionSpec(AXIS), PartitionSpec()
    specs = Pairs(batch, batch, whole, whole, batch, batch)

    def total(p: Pairs) -> jax.Array:
        return lax.psum(on_device(p), AXIS)

    def loss(p: Pairs) -> jax.Array:
        run = jax.shard_map(total, in_specs=(specs,), out_specs=whole, check_vma=False)
        return run(p) / p.x.shape[0]

    return loss


def gather(z: jax.Array) -> jax.Array:
    """All devices' parts of an array, on every device."""
    return lax.all_gather(z, AXIS, tiled=True)


def value_and_gradients(form: Form) -> Callable[[Pairs], tuple[jax.Array, tuple[jax.Array, ...]]]:
    """Value, and gradients of both sides' embeddings, the scale and the bias."""

    def loss(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, p: Pairs) -> jax.Array:
        return form(p._replace(x=x, y=y, scale=scale, bias=bias))

    gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    return lambda p: gradients(p.x, p.y, p.scale, p.bias, p)


def compiled(form: Form, pairs: Pairs) -> Compiled:
    """The program of value and all gradients for arrays, or shapes, like these."""
    return jax.jit(value_and_gradients(form)).lower(pairs).compile()


def shapes(batch: int, dim: int, dtype: jnp.dtype, mesh: Mesh) -> Pairs:
    """Shapes of a batch that is cut over all axes of a mesh."""
    cut = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    whole = NamedSharding(mesh, PartitionSpec())
    z = jax.ShapeDtypeStruct((batch, dim), dtype, sharding=cut)
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    return Pairs(z, z, one, one, z, z)
