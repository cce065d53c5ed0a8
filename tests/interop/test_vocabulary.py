"""Tokenizers beside weights: which file makes which tokenizer, and what is written for others."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from vlalign.data.tokenizer import Bpe
from vlalign.data.tokenizers.pieces import SentencePiece
from vlalign.errors import UserError
from vlalign.interop.vocabulary import hub_tokenizer, siglip_tokenizer, write_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

SENTENCES = ["a cat on a mat", "two dogs, and a bird!", "The tree is green."] * 20


@pytest.fixture(scope="module")
def pieces() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=28,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return model.getvalue()


def test_siglip_s_and_gemma_s(pieces: bytes, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "spiece.model"), (second, "tokenizer.model")):
        folder.mkdir()
        (folder / name).write_bytes(pieces)
    path = str(first / "spiece.model")
    sticky = SentencePiece(path=path, length=9).train()
    padded = SentencePiece(path=path, length=9, clean="lower", fill="pad").train()
    assert sticky.encode(["A cat!"])[0].tolist() != padded.encode(["A cat!"])[0].tolist()
    assert siglip_tokenizer(None, first, 9, gemma=None) == sticky
    assert siglip_tokenizer(None, second, 9, gemma=None) == padded
    assert siglip_tokenizer(None, first, 9, gemma=True) == padded
    assert siglip_tokenizer(first / "spiece.model", None, 9, gemma=False) == sticky
    assert siglip_tokenizer("none", first, 9, gemma=False) is None


@pytest.mark.parametrize(
    ("clean", "fill", "name", "kind"),
    [
        ("canonical", "end", "spiece.model", "SiglipTokenizer"),
        ("lower", "pad", "tokenizer.model", "GemmaTokenizer"),
    ],
)
def test_pieces_are_written_as_they_were(
    clean: Any, fill: Any, name: str, kind: str, pieces: bytes, tmp_path: Path
) -> None:
    (tmp_path / "spiece.model").write_bytes(pieces)
    made = SentencePiece(path=str(tmp_path), length=9, clean=clean, fill=fill).train()
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", made)
    assert (tmp_path / "out" / name).read_bytes() == pieces
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config == {"tokenizer_class": kind, "model_max_length": 9}
    assert siglip_tokenizer(None, tmp_path / "out", 9, gemma=None) == made


def test_pieces_that_nobody_else_has_are_refused(pieces: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(pieces)
    made = SentencePiece(path=str(tmp_path), length=9, clean="none").train()
    with pytest.raises(UserError, match="neither SigLIP's nor SigLIP 2's"):
        write_tokenizer(tmp_path, made)


def test_a_tokenizer_of_our_own_is_written_in_the_hub_s_format(tmp_path: Path) -> None:
    made = Bpe(length=8, vocab_size=300).train(SENTENCES)
    assert write_tokenizer(tmp_path, made) == ()
    again = hub_tokenizer(None, tmp_path, 8, "none")
    assert again is not None
    ids = made.encode(SENTENCES[:3])[0].tolist()
    assert again.encode(SENTENCES[:3])[0].tolist() == ids
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    assert state["model"]["type"] == "BPE"


def test_no_file_is_said_with_what_was_sought(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of spiece\.model, tokenizer\.model"):
        siglip_tokenizer(None, tmp_path, 9, gemma=None)
    with pytest.raises(
        UserError, match=r"nothing beside the weights holds none of tokenizer\.json"
    ):
        hub_tokenizer(None, None, 9, "none")
