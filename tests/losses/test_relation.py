"""KL of similarity distributions: of rows to anchors, and of tokens among themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.companions import Case, Companion, check_close, normal, weights
from vlalign.losses.relation import relation_kl, token_relation_kl

B, K, L = 16, 7, 5
RNG = np.random.default_rng(0)
WEIGHT = weights(RNG, B)
TEMPERATURES = {"student_temperature": 0.5, "teacher_temperature": 0.3}
VALID = np.asarray([True, False, True, True, True, False, True])
MASK = RNG.random((B, L)) < 0.7
MASK[:, 0] = True
ROWS = {"student": normal(RNG, B, K) / 2, "teacher": normal(RNG, B, K) / 2}
TOKENS = {"student": normal(RNG, B, L, L) / 2, "teacher": normal(RNG, B, L, L) / 2}


def kl(student, teacher, valid):
    """Of one distribution over what is valid."""
    p, q = (jnp.where(valid, jnp.exp(s / t), 0.0) for s, t in ((teacher, 0.3), (student, 0.5)))
    p, q = p / jnp.sum(p), jnp.where(valid, q / jnp.sum(q), 1.0)
    return jnp.sum(p * jnp.log(jnp.where(valid, p, 1.0) / q))


def rows(stop):
    def ours(student, teacher, weight, valid=None):
        return relation_kl(
            student,
            teacher,
            valid_k=valid,
            row_weight_b=weight,
            stop_teacher=stop,
            **TEMPERATURES,
        )

    def twin(student, teacher, weight, valid=None):
        valid = jnp.ones(K, bool) if valid is None else valid
        teacher = jax.lax.stop_gradient(teacher) if stop else teacher
        return jnp.average(jax.vmap(kl, (0, 0, None))(student, teacher, valid), 0, weight)

    return ours, twin


def tokens(student, teacher, weight, mask=None):
    given = {"mask_bl": mask, "row_weight_b": weight}
    return token_relation_kl(student, teacher, **given, **TEMPERATURES)


def tokens_twin(student, teacher, weight, mask=None):
    mask = np.ones(student.shape[:2], bool) if mask is None else mask
    weights_of_tokens = weight[:, None] * mask.astype(np.float64)
    of_sample = jax.vmap(kl, (0, 0, None))
    each = jax.vmap(of_sample)(student, jax.lax.stop_gradient(teacher), mask)
    return jnp.sum(weights_of_tokens * each) / jnp.sum(weights_of_tokens)


class TestRelation(Companion):
    cases = (
        Case("rows", *rows(True), ROWS, {"weight": WEIGHT}, still=("teacher",)),
        Case(
            "anchors",
            *rows(False),
            ROWS,
            {"weight": WEIGHT, "valid": VALID},
            whole=("valid",),
        ),
        Case("tokens", tokens, tokens_twin, TOKENS, {"weight": WEIGHT}, still=("teacher",)),
        Case(
            "masked tokens",
            tokens,
            tokens_twin,
            TOKENS,
            {"weight": WEIGHT, "mask": MASK},
            still=("teacher",),
        ),
    )


def test_left_out_anchors_and_tokens_change_nothing_to_the_bit():
    def of_rows(student):
        return relation_kl(student, ROWS["teacher"], valid_k=VALID, **TEMPERATURES).mean

    def of_tokens(student):
        return token_relation_kl(student, TOKENS["teacher"], mask_bl=MASK, **TEMPERATURES).mean

    among = MASK[:, :, None] & MASK[:, None, :]
    for loss, student, valid in (
        (of_rows, ROWS["student"], np.tile(VALID, (B, 1))),
        (of_tokens, TOKENS["student"], among),
    ):
        first = jax.value_and_grad(loss)(student)
        again = jax.value_and_grad(loss)(np.where(valid, student, np.nan))
        jax.tree.map(np.testing.assert_array_equal, again, first)
        np.testing.assert_array_equal(first[1][~valid], 0.0)
    found = token_relation_kl(*TOKENS.values(), mask_bl=MASK, **TEMPERATURES)
    assert int(found.count) == MASK.sum()


def test_temperatures_learn_whatever_left_out_anchors_hold():
    student, teacher = (np.where(VALID, scores, np.nan) for scores in ROWS.values())

    def loss(student_temperature, teacher_temperature):
        temperatures = {
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
        }
        return relation_kl(student, teacher, valid_k=VALID, **temperatures).mean

    grads = jax.grad(loss, (0, 1))(0.5, 0.3)
    slope = (loss(0.51, 0.3) - loss(0.49, 0.3)) / 0.02
    np.testing.assert_allclose(grads[0], slope, rtol=1e-2)
    assert grads[1] == 0


def test_kl_plus_entropy_is_the_cross_entropy():
    loss = relation_kl(**{f"{k}_bk": v for k, v in ROWS.items()}, **TEMPERATURES)
    p = jax.nn.softmax(ROWS["teacher"] / 0.3, axis=1)
    cross = -np.sum(p * jax.nn.log_softmax(ROWS["student"] / 0.5, axis=1), axis=1)
    total = loss.mean + loss.metric_means()["teacher_entropy"]
    np.testing.assert_allclose(total, cross.mean(), rtol=1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50, width=32))
def test_equal_relations_cost_nothing_and_others_do(seed, shift):
    scores = normal(np.random.default_rng(seed), 4, K)
    both = {"student_temperature": 0.3, "teacher_temperature": 0.3}
    same = relation_kl(scores + np.float32(shift), scores, **both).mean
    assert abs(same) < 1e-4
    assert relation_kl(np.flip(scores, axis=1), scores, **both).mean > 1e-3


def test_no_anchor_and_no_token():
    arrays = {"student": ROWS["student"], "teacher": ROWS["teacher"]}
    nothing = {"weight": WEIGHT, "valid": np.zeros(K, bool)}
    case = TestRelation.cases[1]
    value, grads = case.found(arrays, nothing)
    assert value == 0
    check_close((value, grads), (value, {k: np.zeros_like(g) for k, g in grads.items()}))


def test_errors_say_what_would_be_right():
    scores = ROWS["student"]
    with pytest.raises(ValueError, match=r"teacher_bk \(16, 3\).*must be \(B, K\)"):
        relation_kl(scores, scores[:, :3], **TEMPERATURES)
    with pytest.raises(ValueError, match=r"valid_k \(16,\): must be \(7,\)"):
        relation_kl(scores, scores, valid_k=WEIGHT > 0, **TEMPERATURES)
    square = TOKENS["student"]
    with pytest.raises(ValueError, match=r"student_bll \(16, 5, 3\): must be \(B, l, l\)"):
        token_relation_kl(square[..., :3], square, **TEMPERATURES)
    with pytest.raises(ValueError, match=r"mask_bl \(16, 4\): must be \(16, 5\)"):
        token_relation_kl(square, square, mask_bl=MASK[:, 1:], **TEMPERATURES)
