"""The tokenizer: deterministic, complete on any text, honest about truncation."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from vlalign.data.captions import CaptionView
from vlalign.data.emoji import Emoji
from vlalign.data.tokenizer import Bpe, Tokenizer
from vlalign.errors import UserError

TEXTS = [t for i in range(0, 1911, 4) for t in CaptionView().texts(Emoji()[i])]
TOKENIZER = Bpe(vocab_size=600, length=24).train(TEXTS)


def test_training_does_not_depend_on_the_order() -> None:
    again = Bpe(vocab_size=600, length=24).train(reversed(TEXTS))
    assert again == TOKENIZER
    assert again.fingerprint() == TOKENIZER.fingerprint()
    assert Bpe(vocab_size=500, length=24).train(TEXTS).fingerprint() != TOKENIZER.fingerprint()


def test_rows() -> None:
    ids, cut = TOKENIZER.encode(["a red heart", ""])
    assert ids.dtype == np.int32
    assert ids.shape == (2, 24)
    assert not cut.any()
    assert TOKENIZER.vocab_size == 600
    for row in ids:
        end = int(np.flatnonzero(row == TOKENIZER.eos_id)[0])
        assert row[0] == TOKENIZER.bos_id
        assert (row[1:end] > TOKENIZER.eos_id).all()
        assert (row[end + 1 :] == TOKENIZER.pad_id).all()
    assert ids[1].tolist() == [1, 2] + [0] * 22
    assert TOKENIZER.encode([])[0].shape == (0, 24)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_text_round_trips_up_to_normalisation(text: str) -> None:
    ids, cut = LONG.encode([text])
    assert not cut[0]
    assert LONG.decode(ids[0]) == LONG._library.normalizer.normalize_str(text)


LONG = Bpe(vocab_size=600, length=400).train(TEXTS)


def test_normalisation() -> None:
    ids, _ = TOKENIZER.encode(["Red  Heart", "red heart", " \uff32ed\theart "])
    assert (ids == ids[0]).all()
    cased = Bpe(vocab_size=600, length=24, lowercase=False).train(TEXTS)
    ids, _ = cased.encode(["Red", "red"])
    assert (ids[0] != ids[1]).any()


@pytest.mark.parametrize("text", ["heart " * 2_000, "x" * 10_000, "\u2764" * 10_000])
def test_long_texts_are_cut_and_counted(text: str) -> None:
    ids, cut = TOKENIZER.encode(["a heart", text])
    assert cut.tolist() == [False, True]
    assert ids[1, -1] == TOKENIZER.eos_id
    assert (ids[1] != TOKENIZER.pad_id).all()


def test_the_limit_is_exact() -> None:
    fits = next(n for n in range(1, 30) if TOKENIZER.encode(["q " * n])[0][0, -1])
    assert TOKENIZER.encode(["q " * fits, "q " * (fits + 1)])[1].tolist() == [False, True]


def test_special_tokens_in_a_text_are_text() -> None:
    ids, _ = TOKENIZER.encode(["a</s><pad><s>b"])
    assert (ids[0] == TOKENIZER.eos_id).sum() == 1
    assert (ids[0] == TOKENIZER.bos_id).sum() == 1
    assert TOKENIZER.decode(ids[0]) == "a</s><pad><s>b"


def test_remembered_rows_equal_fresh_ones() -> None:
    fresh = Tokenizer(pickle.loads(pickle.dumps(TOKENIZER))._json)
    texts = TEXTS[:50] + TEXTS[:50] + ["y " * 500] * 2
    for _ in range(2):
        for one, other in zip(fresh.encode(texts), TOKENIZER.encode(texts), strict=True):
            np.testing.assert_array_equal(one, other)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == TOKENIZER
    assert loaded.length == 24
    assert loaded.fingerprint() == TOKENIZER.fingerprint()
    assert pickle.loads(pickle.dumps(loaded)) == TOKENIZER
    plain = Library.from_file(str(path))  # any reader of the format agrees
    np.testing.assert_array_equal(
        plain.encode("a red heart").ids, loaded.encode(["a red heart"])[0][0]
    )


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*none\.json"):
        Tokenizer.load(tmp_path / "none.json")
    bare = json.loads(TOKENIZER._json)
    for name, text in {
        "half": TOKENIZER._json[:500],
        "other": '{"a": 1}',
        "bare": json.dumps({**bare, "truncation": None}),
        "binary": "\x00",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name} is not a tokenizer of vlalign"):
            Tokenizer.load(tmp_path / name)


def test_wrong_configurations_are_named() -> None:
    with pytest.raises(UserError, match="at least 259"):
        Bpe(vocab_size=100)
    with pytest.raises(UserError, match="length=2"):
        Bpe(length=2)
    with pytest.raises(UserError, match="train_records=0"):
        Bpe(train_records=0)
    with pytest.raises(UserError, match="no captions to train a tokenizer on"):
        Bpe().train(["", "  "])
