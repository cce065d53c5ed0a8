"""Texts made safe and clean: bytes to text, a caption checked, the cleaning of CLIP and SigLIP.

Every function takes time linear in its text, whatever is in it.
"""

import html
import html.entities
import importlib
import re
import string
import unicodedata
from collections.abc import Callable
from typing import Any

from vlalign.data.record import BadRecord
from vlalign.errors import UserError

# A view gives at most this much of a caption and one character more: that no row of tokens holds
# it, so that the tokenizer counts it as cut.
MOST_CHARACTERS = 1 << 16

_BINARY = re.compile("[\x00\ud800-\udfff\ufffe\uffff]")
_VISIBLE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = re.compile(r"[^ -~]|&")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_ESCAPE = re.compile("\x1b\\[[\\d;]*[a-zA-Z]")
# `&amp;amp;amp;` loses one level a pass: without a bound, a long enough one takes hours.
_PASSES = 16


def decode_text(data: bytes) -> str:
    """The text of UTF-8 bytes, a byte order mark left out.

    Raises BadRecord("invalid text") that names the first wrong byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise BadRecord(
            "invalid text", f"byte 0x{byte:02x} at {error.start} is not UTF-8: {error.reason}"
        ) from error


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen: spaces, control and zero-width characters at most."""
    return _VISIBLE.search(text) is None


def checked(text: str, key: str) -> str:
    """A record's text, at most `MOST_CHARACTERS` + 1 of it, if it is one.

    Raises BadRecord: "invalid text" for NUL, a surrogate (bytes that were no UTF-8) or a
    noncharacter, "empty caption" if nothing in it can be seen. key: the record's, for the message.
    """
    text = text[: MOST_CHARACTERS + 1]
    found = _BINARY.search(text)
    if found:
        raise BadRecord("invalid text", f"{key}: U+{ord(found[0]):04X} at {found.start()}")
    if is_blank(text):
        raise BadRecord("empty caption", f"{key}: nothing visible in {text[:20]!r}")
    return text


def joined_surrogates(text: str) -> str:
    """A text that can be encoded: paired surrogates joined, lone ones as U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def collapsed(text: str) -> str:
    """Every run of white space as one space, none at the ends."""
    return " ".join(text.split())


def lower(text: str) -> str:
    """`collapsed` and in lower case."""
    return collapsed(text).lower()


def canonical(text: str) -> str:
    """SigLIP's: `_` as a space, ASCII punctuation removed, lower case, white space collapsed.

    As big_vision's `canonicalize_text` (evaluators/proj/image_text/prompt_engineering.py) and
    open_clip's; transformers takes `_` out instead, so that two words become one.
    """
    return lower(text.replace("_", " ").translate(_NO_PUNCTUATION))


def clip_clean(text: str) -> str:
    """CLIP's cleaning (Radford et al. 2021, `clip/simple_tokenizer.py`), but for mojibake.

    The original calls ftfy, then `html.unescape` twice, collapses white space and drops case. All
    that ftfy 6.3 does is done here, except that text which was decoded by the wrong encoding stays
    as it is: ftfy guesses at that from tables as large as a language model's.
    """
    if not _PLAIN.search(text):  # nothing in it that any step would change
        return lower(text)
    return _unescaped(_fixed(text))


def clip_clean_ftfy(text: str) -> str:
    """CLIP's cleaning, by ftfy itself; UserError if it is not installed."""
    if not _PLAIN.search(text):
        return lower(text)
    return _unescaped(_ftfy().fix_text(text))


def _ftfy() -> Any:
    try:
        return importlib.import_module("ftfy")
    except ImportError as error:
        raise UserError(
            "repair='ftfy' needs the package ftfy: pip install ftfy, or set repair='builtin'"
        ) from error


def _unescaped(text: str) -> str:
    return lower(html.unescape(html.unescape(text)))


def _fixed(text: str) -> str:
    """Line by line, to a fixed point; from the first `<` on, `&lt;` is taken for what it says."""
    lines, markup = [], False
    for line in text.split("\n"):
        markup = markup or "<" in line
        for _ in range(_PASSES):
            before = line
            if not markup:
                line = _ENTITY.sub(_character, line)
            line = _ESCAPE.sub("", joined_surrogates(line.translate(_SIMPLER))).translate(_HIDDEN)
            line = unicodedata.normalize("NFC", line)
            if line == before:
                break
        lines.append(line)
    return "\n".join(lines)


def _character(entity: re.Match[str]) -> str:
    text = entity[0]
    if text.startswith("&#"):
        character = html.unescape(text)
        return text if ";" in character else character
    name = text[1:]
    if name in html.entities.html5:
        return html.entities.html5[name]
    # `&EACUTE;`, from data bases that shout; not where the standard knows a part of it.
    small = html.entities.html5.get(name.lower())
    if small and name == name.upper() and html.unescape(text) == text:
        return small.upper()
    return text


def _simpler() -> dict[int, str]:
    """Code point -> simpler text: ligatures, full and half width, C1 controls, curled quotes."""
    letters = [*range(0x132, 0x134), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4)]
    table = {code: unicodedata.normalize("NFKC", chr(code)) for code in letters}
    ligatures = ("ff", "fi", "fl", "ffi", "ffl", "\u017ft", "st")
    table |= {0xFB00 + index: text for index, text in enumerate(ligatures)}
    table |= {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)}
    table |= {
        0x80 + i: bytes([0x80 + i]).decode("cp1252", "ignore") or chr(0x80 + i) for i in range(32)
    }
    table |= dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'")
    table |= dict.fromkeys(range(0x201C, 0x2020), '"')
    return {**table, 0x149: "'n", 0x3000: " "}


_SIMPLER = _simpler()
_HIDDEN = dict.fromkeys(
    [
        *range(0x09),
        0x0B,
        *range(0x0E, 0x20),
        0x7F,
        *range(0x206A, 0x2070),
        0xFEFF,
        *range(0xFFF9, 0xFFFD),
    ]
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

# What a configuration may name.
CLEAN: dict[str, Callable[[str], str]] = {
    "none": str,
    "space": collapsed,
    "lower": lower,
    "canonical": canonical,
}
