"""The writing system of a text, guessed by Unicode block: a check of language tags, no more."""

import bisect
from collections import Counter

# (first code point, script). A block goes to the next entry's start; "" is no script's letters.
# Unicode 16.0, Blocks.txt, the blocks of living scripts; kana and Bopomofo decide for Han.
_BLOCKS = (
    (0x0000, "Latin"),
    (0x0250, ""),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0700, "Syriac"),
    (0x0750, "Arabic"),
    (0x0780, "Thaana"),
    (0x07C0, "NKo"),
    (0x0800, ""),
    (0x0860, "Arabic"),
    (0x0900, "Devanagari"),
    (0x0980, "Bengali"),
    (0x0A00, "Gurmukhi"),
    (0x0A80, "Gujarati"),
    (0x0B00, "Oriya"),
    (0x0B80, "Tamil"),
    (0x0C00, "Telugu"),
    (0x0C80, "Kannada"),
    (0x0D00, "Malayalam"),
    (0x0D80, "Sinhala"),
    (0x0E00, "Thai"),
    (0x0E80, "Lao"),
    (0x0F00, "Tibetan"),
    (0x1000, "Myanmar"),
    (0x10A0, "Georgian"),
    (0x1100, "Hangul"),
    (0x1200, "Ethiopic"),
    (0x13A0, "Cherokee"),
    (0x1400, ""),
    (0x1780, "Khmer"),
    (0x1800, "Mongolian"),
    (0x18B0, ""),
    (0x1C80, "Cyrillic"),
    (0x1C90, "Georgian"),
    (0x1CC0, ""),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, ""),
    (0x2DE0, "Cyrillic"),
    (0x2E00, ""),
    (0x2E80, "Han"),
    (0x2FE0, ""),
    (0x3005, "Han"),
    (0x3040, "Kana"),
    (0x3100, "Han"),
    (0x3130, "Hangul"),
    (0x3190, "Han"),
    (0x31F0, "Kana"),
    (0x3200, "Han"),
    (0xA000, ""),
    (0xA640, "Cyrillic"),
    (0xA6A0, ""),
    (0xA720, "Latin"),
    (0xA800, ""),
    (0xAC00, "Hangul"),
    (0xD7B0, "Hangul"),
    (0xD800, ""),
    (0xF900, "Han"),
    (0xFB00, "Latin"),
    (0xFB13, "Armenian"),
    (0xFB1D, "Hebrew"),
    (0xFB50, "Arabic"),
    (0xFE00, ""),
    (0xFE70, "Arabic"),
    (0xFF00, "Latin"),
    (0xFF65, "Kana"),
    (0xFFA0, "Hangul"),
    (0xFFE0, ""),
    (0x20000, "Han"),
    (0x323B0, ""),
)
_STARTS = [start for start, _ in _BLOCKS]
_LOOKED_AT = 1000  # characters: enough to tell, and a huge text costs no more


def script_of(text: str) -> str:
    """The script of most letters of a text, such as "Latin"; "none" without letters.

    Han with kana is "Japanese", other Han is "Han"; letters of rare scripts are "other".
    """
    text = text[:_LOOKED_AT]
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    counts: Counter[str] = Counter()
    for letter, times in Counter(filter(str.isalpha, text)).items():
        name = _BLOCKS[bisect.bisect_right(_STARTS, ord(letter)) - 1][1]
        counts[name or "other"] += times
    if "Kana" in counts:
        counts["Japanese"] = counts.pop("Kana") + counts.pop("Han", 0)
    return max(counts, key=lambda name: (counts[name], name)) if counts else "none"
