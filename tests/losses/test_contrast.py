"""The streaming contrastive losses against the dense forms in float64, on one device."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.losses.contrast import Extra, Teacher, sigmoid_contrast, softmax_contrast

X = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(("block_size", "quick"), [(64, False), (5, True)])
def test_values_and_gradients(case, block_size, quick, reference_of, check_close):
    arrays, given, expected = reference_of(case, 24, 16, 20.0)
    check_close(case.found(arrays, given, block_size=block_size, quick=quick), expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 200.0])
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "albef"])
def test_extreme_scales(name, scale, make_case, reference_of, check_close):
    case = make_case(
        name,
        sigmoid=name == "sigmoid",
        teacher=name == "albef",
        extra=13 if name == "albef" else 0,
    )
    arrays, given, expected = reference_of(case, 24, 16, scale)
    check_close(case.found(arrays, given, block_size=8), expected)


@settings(max_examples=8)
@given(
    batch=st.integers(1, 12),
    dim=st.integers(1, 6),
    block_size=st.integers(1, 14),
    scale=st.sampled_from([1e-3, 0.5, 14.0, 100.0, 200.0]),
    seed=st.integers(0, 2**16),
    sigmoid=st.booleans(),
    group=st.booleans(),
    weight=st.booleans(),
    extra=st.integers(0, 5),
    teacher=st.booleans(),
)
def test_any_shape(
    batch, dim, block_size, scale, seed, make_case, check_close, sigmoid, teacher, **fields
):
    case = make_case("drawn", sigmoid=sigmoid, teacher=teacher and not sigmoid, **fields)
    arrays, rest = case.inputs(batch, dim, scale, seed)
    found = case.found(arrays, rest, block_size=block_size)
    # float32 scores are rounded to scale * 2^-24: what cancels to less is zero.
    check_close(found, case.expected(arrays, rest), floor=max(scale, 1.0))


def test_converged_loss_keeps_its_digits(make_case, check_close):
    """lse - positive would be 0 in float32; the loss is 3 e^-20 and so are its gradients."""
    case = make_case("converged")
    arrays, given = case.inputs(4, 4, 20.0)
    arrays |= {"x": X, "y": X}
    expected = case.expected(arrays, given)
    assert 1e-9 < expected[0] < 1e-8
    check_close(case.found(arrays, given), expected)


def test_left_out_rows_change_nothing_to_the_bit(case):
    case = dataclasses.replace(case, weight=True)
    arrays, given = case.inputs(24, 16, 20.0)
    out = given["weight"] == 0
    assert out.any()
    first = case.found(arrays, given, block_size=5)
    for garbage in (np.nan, 3e38):
        dirty = {k: v.copy() for k, v in arrays.items()}
        dirty["x"][out], dirty["y"][out] = garbage, garbage
        if case.teacher:
            u, v, *rest = (np.array(a) for a in given["teacher"])
            u[out], v[out] = garbage, garbage
            given |= {"teacher": (u, v, *rest)}
        again = case.found(dirty, given, block_size=5)
        jax.tree.map(np.testing.assert_array_equal, again, first)
    for side in ("x", "y"):
        np.testing.assert_array_equal(first[1][side][out], 0.0)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_filling_up_a_batch_changes_only_the_order_of_the_last_sum(sigmoid, make_case):
    """Samples of weight 0 behind the others are what a block is filled up with anyway."""
    case = make_case("filled", sigmoid=sigmoid, weight=True)
    arrays, given = case.inputs(28, 16, 20.0)
    filled = {k: np.concatenate([arrays[k], X[:, :1] * np.ones((1, 16), "f")]) for k in "xy"}
    more = {"weight": np.concatenate([given["weight"], np.zeros(4, np.float32)])}
    value, grads = case.found(arrays, given, block_size=8)
    value_2, grads_2 = case.found(arrays | filled, more, block_size=8)
    np.testing.assert_allclose(value_2, value, rtol=3e-7)
    for side in ("x", "y"):
        np.testing.assert_array_equal(grads_2[side][28:], 0.0)
        np.testing.assert_array_equal(grads_2[side][:28], grads[side])


def test_all_rows_left_out(case):
    case = dataclasses.replace(case, weight=True)
    arrays, given = case.inputs(8, 4, 20.0)
    given["weight"] = np.zeros(8, np.float32)
    value, grads = case.found(arrays, given, block_size=4)
    assert value == 0
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, 0.0, err_msg=name)


@pytest.mark.parametrize("name", ["softmax", "groups", "albef", "sigmoid"])
def test_bfloat16(name, make_case, check_close):
    scale, distilled = 20.0, name == "albef"
    case = make_case(
        name,
        sigmoid=name == "sigmoid",
        group=name == "groups",
        teacher=distilled,
        extra=13 if distilled else 0,
    )
    arrays, given = case.inputs(24, 16, scale)
    low = {k: jnp.asarray(v, jnp.bfloat16) if np.ndim(v) else v for k, v in arrays.items()}
    exact = {k: np.asarray(v, np.float32) for k, v in low.items()}
    found = case.found(low, given, block_size=8)
    assert found[0].dtype == jnp.float32
    assert found[1]["x"].dtype == jnp.bfloat16
    assert found[1]["scale"].dtype == jnp.float32
    check_close(found, case.expected(exact, given), tolerance=1e-2, floor=scale / 24)


def test_metrics_and_sums():
    x = np.eye(6, dtype=np.float32)
    y = x[[0, 1, 3, 2, 4, 5]]
    weight = np.asarray([1, 1, 1, 1, 2, 0], np.float32)
    for loss in (
        softmax_contrast(x, y, logit_scale=3.0, row_weight_b=weight, block_size=4),
        sigmoid_contrast(x, y, logit_scale=3.0, logit_bias=0.0, row_weight_b=weight),
    ):
        assert loss.count == 6.0
        means = loss.metric_means()
        np.testing.assert_allclose(means["accuracy_rows"], 4 / 6)
        np.testing.assert_allclose(means["accuracy_columns"], 4 / 6)
        np.testing.assert_allclose(means["positive_logit"], 3.0 * 4 / 6)
        np.testing.assert_allclose(loss.mean, loss.sum / 6)


def test_accuracy_of_groups_and_of_a_collapsed_model():
    x, y = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[1, 0, 2, 3]]
    group = np.asarray([7, 7, 2, 3], np.int32)
    right = softmax_contrast(x, y, logit_scale=1.0, group_b=group).metric_means()
    assert right["accuracy_rows"] == right["accuracy_columns"] == 1.0
    same = np.tile(x[:1], (4, 1))
    collapsed = softmax_contrast(same, same, logit_scale=1.0).metric_means()
    assert collapsed["accuracy_rows"] == collapsed["accuracy_columns"] == 0.0


def test_teacher_gets_no_gradient(make_case):
    case = make_case("teacher", teacher=True)
    arrays, given = case.inputs(8, 4, 5.0)

    def loss(teacher):
        return case.ours(arrays, given | {"teacher": teacher}).mean

    for grad in jax.tree.leaves(jax.grad(loss)(given["teacher"])[:3]):
        np.testing.assert_array_equal(grad, 0.0)


def test_no_float64_and_no_square_array(make_case):
    """Nothing in the program is as large as (B, B), before any compiler has cleaned it up."""
    case = make_case("program", teacher=True, weight=True)
    arrays, given = case.inputs(96, 4, 5.0)
    step = jax.value_and_grad(lambda a, g: case.ours(a, g, block_size=16).mean)
    shapes = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                shapes.add((getattr(variable.aval, "size", 0), str(variable.aval.dtype)))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(step)(arrays, given).jaxpr)
    assert len(shapes) > 10
    assert max(size for size, _ in shapes) < 96 * 96 / 4
    assert not {dtype for _, dtype in shapes} & {"float64", "int64"}


def _contrast(**changes):
    arguments = {"x_bd": X, "y_bd": X, "logit_scale": 1.0} | changes
    return softmax_contrast(arguments.pop("x_bd"), arguments.pop("y_bd"), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_bd": X[:3]}, "must be of one batch"),
        ({"x_bd": X[:0], "y_bd": X[:0]}, "B > 0"),
        ({"y_bd": X.astype(jnp.bfloat16)}, "one float dtype"),
        ({"logit_scale": np.ones(1, np.float32)}, r"logit_scale \(1,\): must be \(\)"),
        ({"row_weight_b": np.ones(3, np.float32)}, r"row_weight_b \(3,\): must be \(4,\)"),
        ({"group_b": np.ones(4, np.float32)}, "group_b float32: must be an integer"),
        ({"directions": (0.0, 0.0)}, "one positive"),
        ({"directions": (-1.0, 1.0)}, "none negative"),
        ({"directions": (0.0, 1.0), "extra": Extra(X)}, "swap x_bd and y_bd"),
        ({"extra": Extra(X[:, :2])}, r"extra.z_qd as y: .*must be two \(n, d\) of one width"),
        ({"extra": Extra(X, np.ones(4, np.int32))}, "must be bool"),
        ({"extra": Extra(X, None, np.ones(4, np.int32))}, "needs group_b"),
        ({"teacher": Teacher(X, X[:2], 1.0, 0.5)}, r"teacher.y_bd \(2, 4\): must be \(4, ...\)"),
        ({"teacher": Teacher(X, X, 1.0, 0.5, extra_qd=X)}, "give both, or neither"),
        ({"teacher": Teacher(X, X.astype(jnp.bfloat16), 1.0, 0.5)}, "teacher: .*one float dtype"),
        ({"block_size": 0}, "block_size=0"),
        ({"route": "star"}, "route='star'"),
    ],
)
def test_errors_say_what_would_be_right(changes, message):
    with pytest.raises(ValueError, match=message):
        _contrast(**changes)
