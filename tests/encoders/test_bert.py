"""BERT's family against transformers and open_clip at the same random weights.

The golden files are written by make_golden_bert.py.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.encoders.originals import (
    check_gradients,
    check_on_a_mesh,
    flat,
    golden,
    parameters,
    part,
    wave,
)
from vlalign.encoders.bert import Bert, distance_buckets
from vlalign.encoders.flops import program_flops
from vlalign.errors import UserError
from vlalign.interop.names import bert as names
from vlalign.interop.rows import Table, Unused, export_params

SMALL = Bert(vocab_size=60, width=24, depth=2, heads=3, mlp_ratio=40 / 24, positions=14)
ROBERTA: dict[str, Any] = dict(position_from="padding", pad_id=1, epsilon=1e-5, token_types=1)

# The towers of the golden files, the names that theirs have, and whether they are open_clip's.
TOWERS: dict[str, tuple[Bert, names.Family, bool]] = {
    "bert": (SMALL.clone(pool="tanh"), "bert", False),
    "bert_mean": (SMALL, "bert", False),
    "roberta": (SMALL.clone(**ROBERTA, pool="class"), "bert", False),
    "xlm_roberta_linear": (SMALL.clone(**ROBERTA, embed_dim=10), "bert", True),
    "xlm_roberta_mlp": (
        SMALL.clone(**ROBERTA, embed_dim=10, pool="tanh", projection="mlp"),
        "bert",
        True,
    ),
    "mpnet": (SMALL.clone(**ROBERTA | dict(token_types=0), relative_buckets=32), "mpnet", False),
    "distilbert": (SMALL.clone(token_types=0, pool="class"), "distilbert", False),
}


def loaded(name: str) -> tuple[Bert, Table, dict[str, np.ndarray], Any]:
    """The tower, its table, the golden arrays and its parameters."""
    tower, family, open_clip = TOWERS[name]
    table = names.table(tower, family)
    if open_clip:
        unused = (Unused("transformer.pooler.*"),)
        table = Table(names.open_clip_rows(tower, family), unused)
    arrays = golden(f"bert_{name}")
    return tower, table, arrays, parameters(tower, table, part(arrays, "param/"), arrays["ids"])


@pytest.mark.parametrize("name", TOWERS)
def test_outputs_and_gradients_are_the_originals(name: str) -> None:
    tower, table, arrays, params = loaded(name)
    # open_clip leaves out the class token with its pooler.
    first = arrays["ids"].shape[1] - arrays["tokens"].shape[1]
    assert first == (name == "xlm_roberta_mlp")

    def total(params: Any) -> Any:
        out = tower.apply({"params": params}, arrays["ids"])
        tokens = jnp.where(out.mask[..., None], out.tokens, 0.0)[:, first:]
        summed = jnp.sum(wave(out.pooled) * out.pooled) + jnp.sum(wave(tokens) * tokens)
        return summed, (out.pooled, tokens)

    grads, (pooled, tokens) = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(pooled, arrays["pooled"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, arrays["tokens"], rtol=0, atol=1e-4)
    check_gradients(table, grads, arrays, least=3)


@pytest.mark.parametrize("name", TOWERS)
def test_tables_lead_there_and_back(name: str) -> None:
    _, table, arrays, params = loaded(name)
    back = export_params(table, flat(params))
    theirs = part(arrays, "param/")
    assert set(theirs) - set(back) <= {n for n in theirs if "pooler" in n}
    for key, value in back.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def test_a_file_with_a_head_for_masked_words_is_read() -> None:
    tower, _, arrays, params = loaded("bert_mean")
    file = {f"bert.{name}": tensor for name, tensor in part(arrays, "param/").items()}
    file |= {"bert.embeddings.position_ids": np.arange(14)[None]}
    file |= {"cls.predictions.bias": np.zeros(60, np.float32)}
    again = parameters(tower, names.table(tower, prefix="bert."), file, arrays["ids"])
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_buckets_are_mpnets_beyond_the_furthest_distance() -> None:
    buckets = distance_buckets(520, 32)
    np.testing.assert_array_equal(buckets[[0, -1]], golden("bert_buckets")["buckets"])
    np.testing.assert_array_equal(buckets[7, 7:], buckets[0, :-7])  # the distance alone counts


@pytest.mark.parametrize("name", ["bert_mean", "roberta", "mpnet"])
def test_padding_changes_nothing(name: str) -> None:
    tower, _, arrays, params = loaded(name)
    ids = arrays["ids"][1:2, :10]  # nothing but real tokens
    longer = np.full((1, 12), tower.pad_id, np.int32)
    longer[:, :10] = ids
    apply = jax.jit(tower.apply)
    short, padded = (apply({"params": params}, x) for x in (ids, longer))
    np.testing.assert_allclose(padded.pooled, short.pooled, atol=1e-5)
    np.testing.assert_allclose(padded.tokens[:, :10], short.tokens, atol=1e-5)
    np.testing.assert_array_equal(padded.mask[0], [True] * 10 + [False] * 2)


def test_unrolled_and_rematerialised_are_equal() -> None:
    tower, _, arrays, params = loaded("mpnet")

    def run(tower: nn.Module) -> Any:
        def total(params: Any) -> jax.Array:
            out = tower.apply({"params": params}, arrays["ids"])
            return jnp.sum(wave(out.pooled) * out.pooled)  # type: ignore[union-attr]

        return jax.jit(jax.grad(total))(params)

    base = run(tower)
    for other in (tower.clone(scan=False), tower.clone(remat="full")):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(other), base)


def test_bfloat16_stays_near_and_ends_in_float32() -> None:
    tower, _, arrays, params = loaded("mpnet")
    out = tower.clone(dtype="bfloat16").apply({"params": params}, arrays["ids"])
    assert out.pooled.dtype == out.tokens.dtype == jnp.float32
    np.testing.assert_allclose(out.pooled, arrays["pooled"], atol=0.1)


def test_texts_longer_than_the_positions_are_refused() -> None:
    tower, _, _, params = loaded("roberta")
    assert tower.longest == 12
    with pytest.raises(UserError, match=r"texts of 13 tokens.*places for 12"):
        tower.apply({"params": params}, np.zeros((1, 13), np.int32))


def test_an_id_outside_the_table_makes_its_row_nan() -> None:
    tower, _, arrays, params = loaded("bert_mean")
    ids = arrays["ids"].copy()
    ids[1, 3] = 60
    pooled = tower.apply({"params": params}, ids).pooled
    np.testing.assert_array_equal(np.isnan(pooled).any(axis=1), [False, True, False])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=5), r"width=24 does not divide into heads=5"),
        (dict(pad_id=60), r"pad_id=60 is no id below 60"),
        (dict(relative_buckets=6), r"relative_buckets=6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    tower = SMALL.clone(**options)
    with pytest.raises(UserError, match=message):
        tower.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


PUBLISHED = {
    "bert-base": (Bert(pool="tanh"), 109_482_240),
    "all-MiniLM-L6-v2": (Bert(width=384, depth=6), 22_565_376),
    "roberta-base": (Bert(vocab_size=50265, positions=514, **ROBERTA), 124_055_040),
    "xlm-roberta-base": (Bert(vocab_size=250002, positions=514, **ROBERTA), 277_453_056),
    "all-mpnet-base-v2": (
        Bert(vocab_size=30527, positions=514, relative_buckets=32, **ROBERTA | dict(token_types=0)),
        108_895_872,
    ),
    "distilbert-base": (Bert(depth=6, token_types=0), 66_362_880),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_number_of_parameters(name: str) -> None:
    tower, wanted = PUBLISHED[name]
    made = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(meta.unbox(made))) == wanted


@pytest.mark.parametrize("name", TOWERS)
def test_flops_are_those_of_the_program(name: str) -> None:
    tower, _, arrays, params = loaded(name)
    counted = program_flops(tower.apply, {"params": params}, arrays["ids"][:1])
    assert tower.flops((12,)) == counted


def test_devices_that_share_it_give_the_same(rng: np.random.Generator) -> None:
    options = dict(
        heads=4, width=32, mlp_ratio=2.0, embed_dim=8, projection="mlp", relative_buckets=32
    )
    ids = rng.integers(1, 60, (8, 12)).astype(np.int32)
    ids[::2, 8:] = 0
    check_on_a_mesh(SMALL.clone(**options), ids)
