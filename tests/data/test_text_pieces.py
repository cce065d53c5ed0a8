"""SentencePiece as SigLIP uses it, on a model trained on the spot."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.tokenizers.load import load_tokenizer
from vlalign.data.tokenizers.pieces import SentencePiece
from vlalign.errors import UserError
from vlalign.tree import dumps, loads

TEXTS = ["a red heart", "two round hearts are here", "the playing cards, played", "heart shaped"]


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(UserError, match="pip install sentencepiece"):
        SentencePiece(path=str(tmp_path)).train()


def test_wrong_fields_are_named() -> None:
    with pytest.raises(UserError, match="length=1"):
        SentencePiece(path="x", length=1)
    with pytest.raises(UserError, match="clean='canon'; nearest: canonical"):
        SentencePiece(path="x", clean="canon")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="fill='eos'"):
        SentencePiece(path="x", fill="eos")  # type: ignore[arg-type]
    config = SentencePiece(path="x", length=16)
    assert loads(dumps(config)) == config


def _train(**options: Any) -> bytes:
    library = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    # As c4_en: padding 0, end 1, unknown 2, no begin.
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 32, **options}
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=out, minloglevel=2, **settings
    )
    return out.getvalue()


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "spiece.model"
    path.write_bytes(_train(model_type=request.param))
    return path


def test_rows_end_in_the_end_token_and_are_filled_by_it(model: Path) -> None:
    library = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(model))
    tokenizer = SentencePiece(path=str(model), length=10).train()
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.length) == (1, 1, 10)
    assert tokenizer.vocab_size == library.vocab_size()
    texts = ["a red heart", "", "the playing cards played the two round hearts"]
    ids, cut = tokenizer.encode(texts)
    assert ids.dtype == np.int32
    assert cut.tolist() == [len(library.encode(text)) > 9 for text in texts]
    assert cut[2]
    for text, row in zip(texts, ids.tolist(), strict=True):
        tokens = library.encode(text)[:9]
        assert row == tokens + [1] * (10 - len(tokens))
    assert tokenizer.decode(ids[0]) == "a red heart"


def test_canonical_text(model: Path) -> None:
    tokenizer = SentencePiece(path=str(model)).train()
    assert tokenizer.length == 64
    ids, _ = tokenizer.encode(["a red heart", "A  Red_HEART!", "a 'red' (heart)."])
    assert (ids == ids[0]).all()
    lower = SentencePiece(path=str(model), clean="lower").train()
    ids, _ = lower.encode(["a red heart", "A red  HEART", "a red heart!"])
    assert (ids[0] == ids[1]).all()
    assert (ids[0] != ids[2]).any()


def test_padding_of_its_own(model: Path) -> None:
    tokenizer = SentencePiece(path=str(model), length=12, fill="pad").train()
    row = tokenizer.encode(["a heart"])[0][0].tolist()
    end = row.index(1)
    assert row[end:] == [1] + [0] * (11 - end)


def test_words_and_files(model: Path, tmp_path: Path) -> None:
    tokenizer = SentencePiece(path=str(model.parent), length=30).train()
    ids, _ = tokenizer.encode(["a red playing heart"])
    assert tokenizer.word_starts(ids)[tokenizer.text_places(ids)].sum() == 4
    assert tokenizer.special_ids == (0, 1)
    tokenizer.save(tmp_path / "tokenizer.json")
    saved = tmp_path / "tokenizer.json"
    for other in (load_tokenizer(saved), pickle.loads(pickle.dumps(tokenizer))):
        assert other == tokenizer
        assert (other.encode(["a red heart"])[0] == tokenizer.encode(["a red heart"])[0]).all()


def test_wrong_models_are_named(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"<html>Not Found</html>")
    with pytest.raises(UserError, match=r"tokenizer\.model is not a SentencePiece model"):
        SentencePiece(path=str(tmp_path)).train()
    path.write_bytes(_train(eos_id=-1))
    with pytest.raises(UserError, match="has no end token"):
        SentencePiece(path=str(tmp_path)).train()
    path.write_bytes(_train(pad_id=-1, eos_id=1, unk_id=0))
    with pytest.raises(UserError, match="has no padding token; use 'end'"):
        SentencePiece(path=str(tmp_path), fill="pad").train()


@given(text=st.text(st.characters(), max_size=60))
def test_any_text_is_a_row(model: Path, text: str) -> None:
    tokenizer = _tokenizer(str(model))
    ids, _ = tokenizer.encode([text])
    assert ids.shape == (1, 16)
    assert ids[0, -1] == 1
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()


_MADE: dict[str, Any] = {}


def _tokenizer(path: str) -> Any:
    if path not in _MADE:
        _MADE[path] = SentencePiece(path=path, length=16, clean="none").train()
    return _MADE[path]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "a heart " * 130_000, "\ud800" * 1_000_000])
def test_a_megabyte_is_a_counted_cut(model: Path, text: str) -> None:
    assert _tokenizer(str(model)).encode([text])[1].tolist() == [True]
