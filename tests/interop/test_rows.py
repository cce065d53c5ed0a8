"""Tables of names: strict, complete in what they report, and bit-identical there and back."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.errors import UserError
from vlalign.interop.hows import (
    Below,
    Conv,
    Dense,
    Flat,
    How,
    Ones,
    Parts,
    Patch,
    Same,
    TokenAndPositions,
)
from vlalign.interop.rows import Row, Table, Unused, export_params, folded, import_params, under

HOWS: list[tuple[How, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = [
    (Same(), ((3, 4),), ((3, 4),)),
    (Dense(), ((4, 6),), ((6, 4),)),
    (Dense(), ((8, 3, 2, 4),), ((24, 8),)),
    (Dense(2), ((2, 4, 8),), ((8, 8),)),
    (Flat(), ((3, 2, 4),), ((24,),)),
    (Ones(ours=1, theirs=2), ((1, 5),), ((1, 1, 5),)),
    (Ones(theirs=1), ((),), ((1,),)),
    (Conv(), ((3, 5, 2, 7),), ((7, 2, 3, 5),)),
    (Patch(), ((12, 5),), ((5, 3, 2, 2),)),
    (Patch(hwio=True), ((12, 5),), ((2, 2, 3, 5),)),
    (Patch(channels=1), ((9, 5),), ((5, 1, 3, 3),)),
    (Parts(Dense(), axis=1), ((8, 3, 2, 4),), ((8, 8),) * 3),
    (Parts(Flat()), ((2, 3, 4),), ((12,),) * 2),
    (Below(Dense()), ((8, 2, 4), (8, 2, 2, 4)), ((24, 8),)),
    (Below(Flat()), ((2, 4), (2, 2, 4)), ((24,),)),
    (TokenAndPositions(), ((1, 5), (4, 5)), ((5,), (5, 5))),
    (TokenAndPositions(axes=3), ((1, 5), (4, 5)), ((1, 1, 5), (1, 5, 5))),
]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("how", "ours", "theirs"), HOWS)
def test_a_transformation_and_back_is_the_same_bits(how: How, ours: object, theirs: object) -> None:
    assert how.shapes(ours) == theirs  # type: ignore[arg-type]
    arrays = tuple(numbers(*shape, seed=i) for i, shape in enumerate(ours))  # type: ignore[call-overload]
    out = how.out(arrays)
    assert tuple(x.shape for x in out) == theirs
    back = how.into(out, ours)  # type: ignore[arg-type]
    for before, after in zip(arrays, back, strict=True):
        assert before.tobytes() == np.ascontiguousarray(after).tobytes()


@pytest.mark.parametrize(
    ("how", "ours", "theirs"), [h for h in HOWS if not isinstance(h[0], TokenAndPositions)]
)
def test_the_other_way_round_too(how: How, ours: object, theirs: object) -> None:
    arrays = tuple(numbers(*shape, seed=i) for i, shape in enumerate(theirs))  # type: ignore[call-overload]
    back = how.out(how.into(arrays, ours))  # type: ignore[arg-type]
    for before, after in zip(arrays, back, strict=True):
        assert before.tobytes() == np.ascontiguousarray(after).tobytes()


def test_dense_is_the_product_that_torch_computes() -> None:
    weight, x = numbers(24, 8), numbers(5, 8, seed=1)
    (kernel,) = Dense().into((weight,), ((8, 3, 2, 4),))
    fused = x @ weight.T
    for part in range(3):
        wanted = fused[:, part * 8 : part * 8 + 8].reshape(5, 2, 4)
        found = np.einsum("bd,dhk->bhk", x, kernel[:, part])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_patch_is_the_convolution_that_torch_computes() -> None:
    weight, image = numbers(5, 3, 2, 2), numbers(4, 6, 3, seed=1)
    (kernel,) = Patch().into((weight,), ((12, 5),))
    patches = image.reshape(2, 2, 3, 2, 3).transpose(0, 2, 1, 3, 4).reshape(6, 12)
    wanted = [
        np.einsum("dchw,hwc->d", weight, image[2 * r : 2 * r + 2, 2 * c : 2 * c + 2])
        for r in range(2)
        for c in range(3)
    ]
    np.testing.assert_allclose(patches @ kernel, wanted, rtol=1e-5, atol=1e-5)


TABLE = Table(
    rows=(
        Row("image/patch/kernel", "visual.conv1.weight", Patch()),
        *under(
            (Row("kernel", ("q.weight", "k.weight"), Parts(Dense(), 1)), Row("bias", "b", Flat())),
            "image/blocks/",
            "visual.layers.{i}.",
        ),
        Row("logit_scale", "logit_scale"),
    ),
    unused=(Unused("*.position_ids"), Unused("batches", np.zeros((), np.int64))),
)
SHAPES = {
    "image/patch/kernel": (12, 4),
    "image/blocks/kernel": (2, 4, 2, 2, 3),
    "image/blocks/bias": (2, 2, 3),
    "logit_scale": (),
}


def theirs(prefix: str = "", dtype: object = np.float32) -> dict[str, np.ndarray]:
    params = {path: numbers(*shape, seed=len(path)) for path, shape in SHAPES.items()}
    found = export_params(TABLE, params) | {"text.position_ids": np.arange(3)}
    return {prefix + n: x.astype(dtype) if x.dtype.kind == "f" else x for n, x in found.items()}  # type: ignore[call-overload]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_layers_are_stacked_and_wrappers_taken_off(prefix: str, dtype: object) -> None:
    found = import_params(TABLE, theirs(prefix, dtype), SHAPES)
    assert {path: x.shape for path, x in found.items()} == SHAPES
    assert all(x.dtype == np.float32 for x in found.values())
    again = import_params(TABLE, export_params(TABLE, found), SHAPES)
    assert all(found[path].tobytes() == again[path].tobytes() for path in SHAPES)


def test_a_scalar_may_be_an_array_of_one() -> None:
    found = import_params(TABLE, theirs() | {"logit_scale": np.ones(1, np.float32)}, SHAPES)
    assert found["logit_scale"].shape == ()


def test_what_their_loaders_want_is_written() -> None:
    assert theirs()["batches"].dtype == np.int64


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = theirs()
    del wrong["visual.layers.0.q.weight"], wrong["visual.layers.1.q.weight"]
    wrong["visual.layers.1.b"] = numbers(7)
    wrong["logit_scale"] = np.ones((), np.float64)
    wrong |= {f"visual.layers.{i}.extra": numbers(2) for i in (0, 1, 2, 5)}
    with pytest.raises(UserError) as failure:
        import_params(TABLE, wrong, SHAPES | {"text/token": (3, 4)})
    assert str(failure.value) == (
        "the weights do not fit the model\n"
        "  2 missing in the file:\n"
        "    visual.layers.{0..1}.q.weight\n"
        "  4 in the file and not known:\n"
        "    visual.layers.{0..2,5}.extra\n"
        "  2 of another shape or kind:\n"
        "    visual.layers.1.b: 7 in the file, 6 wanted\n"
        "    logit_scale: float64; save as float32\n"
        "  1 of our parameters that the table has no row for:\n"
        "    text/token"
    )


def test_a_quantised_tensor_is_none() -> None:
    with pytest.raises(UserError, match="logit_scale: int8; it is quantised or no weight"):
        import_params(TABLE, theirs() | {"logit_scale": np.ones((), np.int8)}, SHAPES)


def test_a_table_of_another_model() -> None:
    few = {path: shape for path, shape in SHAPES.items() if path != "logit_scale"}
    with pytest.raises(UserError, match="parameters that the model does not have:\n    logit_sc"):
        import_params(TABLE, theirs(), few)
    with pytest.raises(UserError, match="the model does not have"):
        export_params(TABLE, {path: numbers(*shape) for path, shape in few.items()})


@given(st.lists(st.integers(0, 30), min_size=1, unique=True))
def test_folding_names_loses_none(layers: list[int]) -> None:
    (shown,) = folded(f"a.{i}.b" for i in layers)
    inner = shown.removeprefix("a.").removesuffix(".b").strip("{}")
    runs = [run.split("..") for run in inner.split(",")]
    found = [i for run in runs for i in range(int(run[0]), int(run[-1]) + 1)]
    assert found == sorted(layers)
