"""Cross-entropy of captions, from logits and from hidden states."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tests.losses.companions import Case, Companion, mesh_of, normal, weights
from vlalign.losses.captioning import captioning_loss, captioning_loss_from_hidden

B, L, V, D = 16, 5, 9, 4
RNG = np.random.default_rng(0)
LOGITS = {"logits": 2 * normal(RNG, B, L, V)}
STATES = {"hidden": normal(RNG, B, L, D), "embedding": normal(RNG, V, D)}
TARGETS = RNG.integers(0, V, size=(B, L), dtype=np.int32)
PLAIN = {"targets": TARGETS, "weight": weights(RNG, B)}
MASKED = PLAIN | {"mask": RNG.random((B, L)) < 0.7}


def from_logits(logits, targets, weight, mask=None, **options):
    return captioning_loss(logits, targets, mask_bl=mask, row_weight_b=weight, **options)


def from_hidden(hidden, embedding, targets, weight, mask=None, **options):
    given = {"mask_bl": mask, "row_weight_b": weight}
    return captioning_loss_from_hidden(hidden, embedding, targets, **given, **options)


def twin(logits, targets, weight, mask=None, label_smoothing=0.0, pad_id=-1):
    p = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=-1, keepdims=True)
    wanted = (1 - label_smoothing) * jax.nn.one_hot(targets, V, dtype=p.dtype)
    loss = -jnp.sum((wanted + label_smoothing / V) * jnp.log(p), axis=-1)
    kept = (targets != pad_id) if mask is None else (targets != pad_id) & mask
    weight = weight[:, None] * kept.astype(np.float64)
    return jnp.sum(weight * loss) / jnp.sum(weight)


def hidden_twin(hidden, embedding, **given):
    return twin(hidden @ embedding.T, **given)


SMOOTHED = {"label_smoothing": 0.2, "pad_id": 3}
partial = functools.partial


class TestCaptioning(Companion):
    cases = (
        Case("logits", from_logits, twin, LOGITS, PLAIN),
        Case(
            "smoothed", partial(from_logits, **SMOOTHED), partial(twin, **SMOOTHED), LOGITS, MASKED
        ),
        Case("hidden", from_hidden, hidden_twin, STATES, PLAIN, whole=("embedding",)),
        Case(
            "chunks",
            partial(from_hidden, chunk_length=2, **SMOOTHED),
            partial(hidden_twin, **SMOOTHED),
            STATES,
            MASKED,
            whole=("embedding",),
        ),
    )


def test_left_out_tokens_change_nothing_to_the_bit():
    mask = MASKED["mask"]
    targets = np.where(mask, TARGETS, -100)

    def of_logits(logits, t):
        return captioning_loss(logits, t, mask_bl=mask)

    def of_hidden(hidden, t):
        return captioning_loss_from_hidden(
            hidden, STATES["embedding"], t, mask_bl=mask, chunk_length=2
        )

    for loss, states in ((of_logits, LOGITS["logits"]), (of_hidden, STATES["hidden"])):
        step = jax.jit(jax.value_and_grad(lambda s, t, f=loss: f(s, t).mean))
        first = step(states, TARGETS)
        again = step(np.where(mask[..., None], states, np.nan), targets)
        jax.tree.map(np.testing.assert_array_equal, again, first)
        np.testing.assert_array_equal(first[1][~mask], 0.0)
        assert int(loss(states, TARGETS).count) == mask.sum()


@settings(max_examples=6)
@given(length=st.integers(1, 7), chunk=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_chunks_of_any_length_are_one_loss(length, chunk, seed):
    rng = np.random.default_rng(seed)
    hidden, embedding = normal(rng, 2, length, D), STATES["embedding"]
    targets = rng.integers(0, V, size=(2, length), dtype=np.int32)
    chunked = captioning_loss_from_hidden(hidden, embedding, targets, chunk_length=chunk)
    whole = captioning_loss(hidden @ embedding.T, targets)
    np.testing.assert_allclose(chunked.mean, whole.mean, rtol=1e-5)
    assert chunked.count == whole.count


def shapes_of(function, *arguments):
    found = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.update(getattr(v.aval, "size", 0) for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def test_no_logits_of_all_tokens():
    hidden, embedding = np.zeros((4, 64, 8), np.float32), np.zeros((256, 8), np.float32)
    targets = np.zeros((4, 64), np.int32)

    def loss(hidden, embedding):
        return captioning_loss_from_hidden(hidden, embedding, targets, chunk_length=4).mean

    sizes = shapes_of(jax.value_and_grad(loss, (0, 1)), hidden, embedding)
    assert max(sizes) == 4 * 4 * 256


def test_no_log_probabilities_of_all_tokens():
    """Beside logits and their gradient nothing is as large as they are."""
    logits = jax.ShapeDtypeStruct((4, 32, 2048), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    step = jax.value_and_grad(lambda z, t: captioning_loss(z, t, label_smoothing=0.1).mean)
    memory = jax.jit(step).lower(logits, targets).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * 4 * 4 * 32 * 2048


def test_a_batch_over_devices_stays_where_it_is():
    """What travels is the sum of the embedding's gradient, not hidden states nor logits."""
    mesh = mesh_of(8)
    with jax.set_mesh(mesh):
        cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        whole = NamedSharding(mesh, PartitionSpec())
        hidden = jax.ShapeDtypeStruct((16, 32, 8), jnp.float32, sharding=cut)
        targets = jax.ShapeDtypeStruct((16, 32), jnp.int32, sharding=cut)
        embedding = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=whole)

        def loss(hidden, embedding, targets):
            return captioning_loss_from_hidden(hidden, embedding, targets, chunk_length=8).mean

        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        text = step.lower(hidden, embedding, targets).compile().as_text()
    assert " all-reduce(" in text
    for kind in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {kind}(" not in text
        assert f" {kind}-start(" not in text


def test_bfloat16_gradients_of_the_embedding_are_summed_in_float32():
    """Each chunk between the first and the last adds 2^-9 of those: bfloat16 would lose it."""
    hidden = np.full((1, 66, 1), 2.0**-9, np.float32)
    hidden[0, [0, -1]] = 1.0
    embedding = np.zeros((2, 1), np.float32)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (hidden, embedding)]
    targets = np.zeros((1, 66), np.int32)

    def loss(table):
        return captioning_loss_from_hidden(low[0], table, targets, chunk_length=1).sum

    grad = np.asarray(jax.grad(loss)(low[1]), np.float32)
    np.testing.assert_allclose(grad[:, 0], [-1.0625, 1.0625])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, h, e: captioning_loss(z[0], TARGETS), r"logits_blv \(5, 9\).*\(B, l, v\)"),
        (lambda z, h, e: captioning_loss(TARGETS[..., None], TARGETS), "int32: must be floats"),
        (lambda z, h, e: captioning_loss(z, TARGETS[:, 1:]), r"targets_bl \(16, 4\).*\(16, 5\)"),
        (lambda z, h, e: captioning_loss(z, z[..., 0]), "targets_bl float32: must be an integer"),
        (lambda z, h, e: captioning_loss(z, TARGETS, mask_bl=TARGETS[0]), r"mask_bl \(5,\)"),
        (lambda z, h, e: captioning_loss(z, TARGETS, label_smoothing=1.0), "0 up to below 1"),
        (
            lambda z, h, e: captioning_loss_from_hidden(h, e[:, 1:], TARGETS),
            r"embedding_vd \(9, 3\): must be \(B, l, d\) and \(v, d\)",
        ),
        (
            lambda z, h, e: captioning_loss_from_hidden(h, e.astype(jnp.bfloat16), TARGETS),
            "must be one float dtype",
        ),
        (
            lambda z, h, e: captioning_loss_from_hidden(h, e, TARGETS, chunk_length=0),
            "chunk_length=0: must be at least 1",
        ),
    ],
)
def test_errors_say_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call(LOGITS["logits"], STATES["hidden"], STATES["embedding"])
