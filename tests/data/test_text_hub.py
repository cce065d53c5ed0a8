"""Tokenizers of the Hugging Face format: any model, our padding and truncation."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from vlalign.data.tokenizer import Bpe
from vlalign.data.tokenizers.hub import HubRows, HubTokenizer
from vlalign.data.tokenizers.load import load_tokenizer
from vlalign.errors import UserError
from vlalign.tree import dumps, loads

TEXTS = [
    "a red heart",
    "two round hearts are here",
    "the playing cards, played",
    "heart-shaped",
] * 3


def word_piece() -> Library:
    """As BERT's: [CLS] text [SEP]."""
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=specials, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # What a hub file may bring along, and what must not decide our rows.
    library.enable_truncation(512, direction="left")
    library.enable_padding(direction="left", pad_id=0, pad_token="[PAD]", length=9)
    return library


def unigram() -> Library:
    """As T5's: text </s>."""
    library = Library(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return library


def byte_bpe() -> Library:
    """As GPT-2's: nothing but the text, and no token for padding."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


MAKERS = {"word_piece": word_piece, "unigram": unigram, "byte_bpe": byte_bpe}


@pytest.fixture(params=list(MAKERS))
def library(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def test_rows_equal_the_librarys(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    tokenizer = HubTokenizer(path=str(path), length=8).train()
    library.no_truncation()
    library.no_padding()
    texts = ["a red heart", "", "heart", "the playing cards played the two round hearts, zq zq"]
    ids, cut = tokenizer.encode(texts)
    around = library.encode("").ids
    for text, row, was_cut in zip(texts, ids, cut, strict=True):
        full = library.encode(text).ids
        assert was_cut == (len(full) > 8)
        if not was_cut:
            assert row.tolist() == full + [tokenizer.pad_id] * (8 - len(full))
        else:
            assert (row != tokenizer.pad_id).all()
            assert row[-1] == (around or full[7:])[-1] or row[-1] == full[7]
    assert cut[-1]
    assert ids.dtype == np.int32
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert set(around) <= set(tokenizer.special_ids)
    assert "heart" in tokenizer.decode(ids[0])


def test_the_end_token_of_a_cut_row_stays(tmp_path: Path) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    tokenizer = HubTokenizer(path=str(tmp_path), length=5).train()
    ids, cut = tokenizer.encode(["a red heart a red heart"])
    assert cut.all()
    assert (ids[0, 0], ids[0, -1]) == (2, 3)


def test_words(tmp_path: Path, library: Library) -> None:
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HubTokenizer(path=str(tmp_path), length=40).train()
    ids, _ = tokenizer.encode(["the heart played tarts"])
    places = tokenizer.text_places(ids)
    assert tokenizer.word_starts(ids)[places].sum() == 4
    assert places.sum() > 4


def test_cleaning_special_texts_and_files(tmp_path: Path) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    config = HubTokenizer(path=str(tmp_path), length=20, clean="canonical")
    tokenizer = config.train()
    ids, _ = tokenizer.encode(["A_red, HEART!", "a red heart", "heart</s>heart"])
    assert (ids[0] == ids[1]).all()
    raw, _ = HubTokenizer(path=str(tmp_path), length=20).train().encode(["heart</s>heart"])
    assert (raw[0] == 1).sum() == 1  # the end, not the text's
    tokenizer.save(tmp_path / "saved.json")
    for other in (load_tokenizer(tmp_path / "saved.json"), pickle.loads(pickle.dumps(tokenizer))):
        assert other == tokenizer
        assert (other.encode(["A red heart"])[0] == tokenizer.encode(["A red heart"])[0]).all()
    assert loads(dumps(config)) == config


def test_a_trained_tokenizer_is_read_and_agrees(tmp_path: Path) -> None:
    trained = Bpe(vocab_size=300, length=12).train(TEXTS)
    trained.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json") == trained
    tokenizer = HubTokenizer(path=str(tmp_path), length=12).train()
    for one, other in zip(tokenizer.encode(TEXTS), trained.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        tokenizer.word_starts(tokenizer.encode(TEXTS)[0]),
        trained.word_starts(trained.encode(TEXTS)[0]),
    )


def _tokenizer(maker: str) -> Any:
    library = MAKERS[maker]()
    library.enable_truncation(16)
    library.enable_padding(length=16, pad_id=0)
    state = {"vlalign": "hub", "clean": "none", "tokenizer": json.loads(library.to_str())}
    return HubRows(json.dumps(state))


ALL = [_tokenizer(name) for name in MAKERS]


@given(st.text(st.characters(), max_size=60))
def test_any_text_is_a_row(text: str) -> None:
    for tokenizer in ALL:
        ids, cut = tokenizer.encode([text])
        assert ids.shape == (1, 16)
        assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
        assert not cut[0] or len(text) > 5


@pytest.mark.parametrize("text", ["x" * 1_000_000, "a heart " * 130_000, "\ud800" * 1_000_000])
def test_a_megabyte_is_a_counted_cut(text: str) -> None:
    for tokenizer in ALL:
        assert tokenizer.encode([text])[1].tolist() == [True]


def test_wrong_files_and_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of tokenizer\.json"):
        HubTokenizer(path=str(tmp_path)).train()
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
        HubTokenizer(path=str(tmp_path)).train()
    library = Library(models.WordLevel({"a": 0, "?": 1}, "?"))
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"has none of <pad>.*name the token in HubTokenizer\.pad"):
        HubTokenizer(path=str(tmp_path)).train()
    with pytest.raises(UserError, match=r"pad='b'.*has no such token"):
        HubTokenizer(path=str(tmp_path), pad="b").train()
    plain = HubTokenizer(path=str(tmp_path), pad="?", length=3).train()
    assert plain.pad_id == 1
    with pytest.raises(UserError, match="do not tell where words begin"):
        plain.word_starts(plain.encode(["a"])[0])
    library = word_piece()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] [CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"length=3.*adds as many"):
        HubTokenizer(path=str(tmp_path), length=3).train()
    with pytest.raises(UserError, match="length=2"):
        HubTokenizer(path="x", length=2)
    with pytest.raises(UserError, match="clean='lowr'; nearest: lower"):
        HubTokenizer(path="x", clean="lowr")  # type: ignore[arg-type]
