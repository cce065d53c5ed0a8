"""Bytes and captions that are no text; cleaning."""

import html
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.captions import CaptionView
from vlalign.data.record import BadRecord, Caption, Record
from vlalign.data.text_clean import (
    MOST_CHARACTERS,
    canonical,
    checked,
    clip_clean,
    decode_text,
    is_blank,
    joined_surrogates,
)
from vlalign.data.tokenizer import Bpe


def outcome(make: Callable[[], str]) -> tuple[str, str]:
    """The kind of problem, "ok" for none, and the text."""
    try:
        return "ok", make()
    except BadRecord as problem:
        return problem.kind, ""


def test_bytes_to_text() -> None:
    assert decode_text("\ufeffcaf\u00e9".encode()) == "caf\u00e9"
    for data in (b"caf\xe9", b"\xff\xfe", b"a\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f"):
        with pytest.raises(BadRecord, match=r"invalid text: byte 0x.. at \d+ is not UTF-8"):
            decode_text(data)


@given(st.binary(max_size=40))
def test_bytes_are_text_or_a_bad_record(data: bytes) -> None:
    kind, text = outcome(lambda: decode_text(data))
    assert kind in ("ok", "invalid text")
    assert kind != "ok" or text.encode() == data.removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    "text", ["a\x00b", "a\ud800", "\udcffa", "a\ufffe", "\uffffa", "a" + "\x00" * 10**6]
)
def test_invalid_text(text: str) -> None:
    with pytest.raises(BadRecord, match=r"invalid text: k: U\+[0-9A-F]{4} at \d"):
        checked(text, "k")


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\u200b\u200b", "\x01\x02", "\x7f\x9f", "\ufeff", " " * 10**6]
)
def test_blank_text(text: str) -> None:
    assert is_blank(text)
    with pytest.raises(BadRecord, match="empty caption: k: nothing visible"):
        checked(text, "k")


@given(st.text(st.characters(), max_size=30))
def test_a_view_gives_a_text_or_a_bad_record(text: str) -> None:
    record = Record(key="k", image=b"", captions=(Caption(text),))
    views = [CaptionView(choice=choice) for choice in ("weighted", "uniform", "joined")]  # type: ignore[arg-type]
    for call in [view.evaluate for view in views] + [
        lambda r, v=view: v(r, np.random.default_rng(0)) for view in views
    ]:
        kind, out = outcome(lambda call=call: call(record))
        assert kind in ("ok", "invalid text", "empty caption")
        assert kind != "ok" or out == text
        out.encode()


@pytest.mark.parametrize("text", ["a cat " * 10**6, "x" * 10**6, "\u2764" * 10**6])
def test_a_megabyte_is_bounded_and_counted(text: str) -> None:
    record = Record(key="k", image=b"", captions=(Caption(text), Caption(text + "!", "long")))
    tokenizer = Bpe(vocab_size=300, length=500).train(["a cat"])
    start = time.process_time()
    for choice in ("weighted", "uniform", "joined"):
        out = CaptionView(choice=choice)(record, np.random.default_rng(0))  # type: ignore[arg-type]
        assert len(out) == MOST_CHARACTERS + 1
        assert tokenizer.encode([out])[1].tolist() == [True]
    assert time.process_time() - start < 10.0


def test_surrogates() -> None:
    assert joined_surrogates("a\ud83d\ude00b") == "a\U0001f600b"
    assert joined_surrogates("a\ud83d b\ude00") == "a\ufffd b\ufffd"


def test_cleaning() -> None:
    assert canonical(" A_b, 'C'!  \u2014 \u4e2d\u3002") == "a b c \u2014 \u4e2d\u3002"
    assert (
        clip_clean("A\n B\u3000&amp;amp; \ufb01ne \u201cx\u201d \x1b[1mc\x1b[0m\x92s")
        == 'a b & fine "x" c\'s'
    )
    assert clip_clean("<b>&lt;") == "<b><"
    assert clip_clean("&" + "amp;" * 10 + "lt;") == "<"
    # Plain ASCII takes a shorter way to the same end.
    text = "Some  Plain text; #1 "
    assert clip_clean(text) == clip_clean(text + "\u00e9").removesuffix("\u00e9").rstrip()
    assert clip_clean("&notit; &copy") == html.unescape("&notit; &copy").lower()
