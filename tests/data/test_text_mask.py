"""Masked tokens: BERT's shares, special tokens and padding untouched, words whole if asked."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.record import Caption, Record
from vlalign.data.text_mask import MaskedText, MaskTokens
from vlalign.data.tokenizer import Bpe
from vlalign.data.tokenizers import clip
from vlalign.data.tokenizers.base import TextTokenizer, TokenizerConfig
from vlalign.errors import UserError

BPE = Bpe(vocab_size=300, length=24).train(["a red heart", "two round hearts are here"])
CLIP = clip.ClipTokenizer(
    json.dumps(
        {
            "vlalign": "clip",
            "repair": "builtin",
            "tokenizer": json.loads(clip._library([("h", "e"), ("r", "t</w>")], 24)),
        }
    )
)
TEXT = st.text(st.sampled_from("heart !"), max_size=30)


def test_one_interface() -> None:
    for tokenizer in (BPE, CLIP):
        assert isinstance(tokenizer, TextTokenizer)
    for config in (Bpe(), clip.ClipBpe()):
        assert isinstance(config, TokenizerConfig)


@pytest.mark.parametrize("tokenizer", [BPE, CLIP])
@given(text=TEXT, whole=st.booleans(), seed=st.integers(0, 99), share=st.floats(0.01, 1.0))
def test_only_text_is_masked(
    tokenizer: TextTokenizer, text: str, whole: bool, seed: int, share: float
) -> None:
    ids = tokenizer.encode([text])[0][0]
    before = ids.copy()
    masking = MaskTokens(share=share, whole_words=whole)
    out = masking(ids, tokenizer, np.random.default_rng(seed))
    again = masking(ids, tokenizer, np.random.default_rng(seed))
    for one, other in zip(out, again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(ids, before)
    np.testing.assert_array_equal(out.targets_l, before)
    places = tokenizer.text_places(ids[None])[0]
    assert not (out.mask_l & ~places).any()
    np.testing.assert_array_equal(out.ids_l[~out.mask_l], ids[~out.mask_l])
    wanted = max(1, round(share * places.sum())) if places.any() else 0
    if not whole:
        assert out.mask_l.sum() == wanted
        return
    assert out.mask_l.sum() >= wanted
    word = np.cumsum(tokenizer.word_starts(ids[None])[0])
    for number in set(word[places].tolist()):
        mine = out.mask_l[(word == number) & places]
        assert mine.all() or not mine.any()


def test_shares() -> None:
    tokenizer = Bpe(vocab_size=300, length=4000).train(["a red heart"])
    ids = tokenizer.encode(["qxz " * 999])[0][0]
    out = MaskTokens()(ids, tokenizer, np.random.default_rng(0))
    count = int(out.mask_l.sum())
    assert count == round(0.15 * tokenizer.text_places(ids[None]).sum())
    masked = (out.ids_l == tokenizer.vocab_size).sum()
    same = (out.ids_l == out.targets_l)[out.mask_l].sum()
    assert 0.74 < masked / count < 0.86
    assert 0.06 < same / count < 0.15
    random = out.ids_l[out.mask_l & (out.ids_l != tokenizer.vocab_size)]
    assert not np.isin(random, tokenizer.special_ids).any()
    assert len(set(random.tolist())) > 30
    assert MaskTokens().vocab_size(tokenizer) == tokenizer.vocab_size + 1
    own = MaskTokens(mask_id=7, mask=1.0, random=0.0)
    assert own.vocab_size(tokenizer) == tokenizer.vocab_size
    out = own(ids, tokenizer, np.random.default_rng(0))
    assert (out.ids_l[out.mask_l] == 7).all()


def test_random_tokens_are_any_but_special() -> None:
    from vlalign.data.text_mask import _random_words

    drawn = _random_words(100_000, CLIP, np.random.default_rng(0))
    assert set(drawn.tolist()) == set(range(CLIP.vocab_size)) - set(CLIP.special_ids)


def test_the_view_gives_the_caption() -> None:
    record = Record(key="a", image=b"", captions=(Caption("a heart"),))
    view = MaskedText()
    assert view(record, np.random.default_rng(0)) == "a heart"
    assert list(view.texts(record)) == ["a heart"]
    assert view.example() == ""


def test_wrong_fields_are_named() -> None:
    with pytest.raises(UserError, match="share=0"):
        MaskTokens(share=0.0)
    with pytest.raises(UserError, match="shares of one whole"):
        MaskTokens(mask=0.9, random=0.2)
    with pytest.raises(UserError, match="mask_id=-1"):
        MaskTokens(mask_id=-1)
