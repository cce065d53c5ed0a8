"""Writes golden/tokens.json: texts and what open_clip's CLIP tokenizer makes of them.

    python tests/data/make_golden_tokens.py     # needs open_clip_torch, which brings ftfy

Beside texts and ids stand the merges that these texts need, by their place in OpenAI's file: with
others in between that no UTF-8 text can reach (see test_text_clip.py), they give the same ids.
"""

import html.entities
import json
import random
from pathlib import Path

import ftfy
import open_clip
from open_clip.tokenizer import SimpleTokenizer

OUT = Path(__file__).with_name("golden") / "tokens.json"
WRITTEN = [
    "a photo of a cat",
    "A Photo of a CAT.",
    "a diagram",
    "it's, they're, I've, I'm, we'll, he'd, don't, CAN'T, rock'n'roll, 'tis, ''double''",
    "it\u017f and '\u017f and \u212aelvin \u212b \u0130stanbul \u03a3\u03af\u03c3\u03c5\u03c6"
    "\u039f\u03a3",
    "curly \u2018quotes\u2019 and \u201cdouble\u201d, the dog\u2019s \u02bc\u201a\u201e\u201b",
    "1234567890 3.14 1,000,000 10% $5.99 \u00a31 \u20ac2 \u00bd \u00b2 \u2460 \u0661\u0662"
    "\u0663 \u2167 \u4e09",
    "e-mail me@example.com or http://example.com/a?b=c&d=e#f",
    "#hashtag @user !!! ... --- ??? ((())) [x] {y} <z> ~`^|\\/",
    "\U0001f600 \U0001f602\U0001f602\U0001f602 \u2764\ufe0f \U0001f44d\U0001f3fd \U0001f1fa"
    "\U0001f1f8",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family \U0001f3f4\U000e0067"
    "\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "\u4e00\u53ea\u732b\u5750\u5728\u57ab\u5b50\u4e0a",
    "\u732b\u304c\u30de\u30c3\u30c8\u306e\u4e0a\u306b\u5ea7\u3063\u3066\u3044\u308b \uff71"
    "\uff72\uff73\uff9e \uff21\uff22\uff23\uff11\uff12\uff01\u3000\u5168\u89d2",
    "\ub9e4\ud2b8 \uc704\uc758 \uace0\uc591\uc774 \u1112\u1161\u11ab",
    "\u0642\u0637\u0629 \u062a\u062c\u0644\u0633 \u0639\u0644\u0649 \u0633\u062c\u0627\u062f"
    "\u0629 \u0640\u064b",
    "\u05d7\u05ea\u05d5\u05dc \u05e2\u05dc \u05de\u05d7\u05e6\u05dc\u05ea",
    "\u0e41\u0e21\u0e27\u0e19\u0e31\u0e48\u0e07\u0e1a\u0e19\u0e40\u0e2a\u0e37\u0e48\u0e2d",
    "\u092c\u093f\u0932\u094d\u0932\u0940 \u091a\u091f\u093e\u0908 \u092a\u0930 \u0967\u0968",
    "\u041a\u043e\u0442 \u0441\u0438\u0434\u0438\u0442 \u043d\u0430 \u043a\u043e\u0432\u0440"
    "\u0438\u043a\u0435 \u0401\u0436",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00c5ngstr\u00f6m stra\u00dfe \u1e9e \u00c6ther "
    "\u0152uvre \u00d8re \u0141\u00f3d\u017a",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m \u1e69 s\u0323\u0307 \u0344",
    "\ufb01ne \ufb02uff \ufb00 \ufb03ce \ufb04 \ufb05 \ufb06 \u0132sje \u01c4 \u01c7 \u01ca "
    "\u01f1 \u0149",
    "AT&amp;T &lt;b&gt; &quot;quoted&quot; &#39;x&#39; &#x27;y&#x27; &hellip; &copy 2020 &nbsp;end",
    "&amp;amp; &amp;amp;amp; &amp;lt;i&amp;gt; &amp;#38;#38; &ampamp;",
    "<b>bold</b> &lt;tag&gt; &amp; &amp;amp; this&not that &notit; &EACUTE; &NTILDE; &nTilde;"
    " &SZLIG;",
    "P&EACUTE;REZ &Eacute; &eacute &OUML; &ALPHA; &alpha; &bogus; &; &#; &#x; &#0; &#128; &#x"
    "110000; &#xD800;",
    "first line &lt;\nsecond <line> &lt;\nthird &lt; &EACUTE;",
    "tabs\tand\nnew\r\nlines\x0b\x0cand\u00a0other\u2003spaces\u2028x\u2029y\x85z\x1c\x1d\x1e\x1fw",
    "  leading and trailing   ",
    "control \x00\x01\x02\x07\x08\x0e\x1b\x7f characters",
    "\x1b[31mred\x1b[0m \x1b[1;44mblue\x1b[m \x1b]0;title\x07",
    "C1 \x80 \x81 \x85 \x8d \x91quoted\x92 \x93x\x94 \x96 \x97 \x99 \x9f",
    "zero\u200bwidth\u200cjoin\u200der \u2060 \ufeff bom \u00ad soft\u00adhyphen \ufff9a"
    "\ufffab\ufffb \ufffc \ufffd",
    "bidi \u202aabc\u202e\u202c \u2066x\u2069 \u206a\u206f",
    "surrogates \ud83d\ude00 \ud83d \ude00 \udcff end",
    "<|startoftext|> in a text <|endoftext|>",
    "",
    " ",
    "\n\t ",
    "\x00",
    "\u200b",
    "&#32;",
    "a",
    "!",
    "x" * 300,
    "ab" * 500,
    "\u00e9" * 200,
    "\U0001f602" * 200,
    "\u4e2d" * 200,
    "a photo of a cat sitting on a mat " * 40,
    "word " * 74,
    "word " * 75,
    "word " * 76,
    "1" * 75,
    "1" * 76,
    "." * 400,
    " " * 3000 + "far away",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
    "IMG_20200101_123456.jpg DSC00001.JPG untitled-1_final(2).png",
    "stock photo id:123456789 \u00a9 Getty Images \u00ae \u2122",
    "a low resolution photo of the {name}, a type of flower.",
    "\u1f08\u1fbc \u1fd3 \u01c5 \u1e9e \u0345 \ufb13 \ufb4f \ufdfa \u2126 \u2103 \u33a1",
    "\U00010400\U00010428 \U0001d400 \U0001d7d8 \U00020000 \U0010ffff \U000e0001",
]
MOJIBAKE = [
    "The Mona Lisa doesn\u00e2\u20ac\u2122t have eyebrows.",
    "caf\u00c3\u00a9 na\u00c3\u00afve",
    "\u00e2\u0153\u201d No problems",
    "l\u2019Humanit\u00c3\u00a9 \u00c2\u00a9 2020",
]


def block_texts() -> list[str]:
    """Every character below U+0250 in a word, samples of all of Unicode, entities."""
    texts = [
        " ".join(f"A{chr(code)}b {chr(code)}" for code in range(start, start + 8))
        for start in range(0, 0x250, 8)
    ]
    texts += [
        "".join(chr(start + offset) for offset in (0, 1, 17, 64, 65, 130, 200, 255))
        for start in (
            *range(0x0300, 0xD800, 0x200),
            *range(0xF900, 0x10000, 0x100),
            *range(0x10000, 0x20000, 0x800),
        )
    ]
    names = sorted(html.entities.html5)
    texts += [" ".join(f"&{name} x" for name in names[i : i + 6]) for i in range(0, len(names), 90)]
    return texts


def mixed_texts() -> list[str]:
    """Random strings over pieces that meet each other badly."""
    rng = random.Random(0)
    # fmt: off
    pieces = [
        "a", "an", "the", "photo", "Photo", "cat's", "DOG", "'s", "'", "''", "'", '"', "&",
        "&amp;", "&lt;", "<", ">", ";", "#", "1", "23", "4.5", "-", "--", "_", "__", ".", ",",
        "!", "?!", "\xe9", "e\u0301", "\u0301", "\xdf", "\u0130", "\u017f", "\u4e2d\u6587",
        "\u3042", "\u0639\u0631", "\U0001f600", "\u2764\ufe0f", "\u2019", "\u201d", "\ufb01",
        "\uff21", "\u200d", "\xa0", "\u3000", "\x1f", "\x00", "\x1b[0m", "\x92", "\ufffd",
        "\ufffd", "\ufeff", "\u0345", " ", "  ", "\n",
    ]
    # fmt: on
    return ["".join(rng.choices(pieces, k=rng.randint(1, 24))) for _ in range(250)]


def needed_merges(tokenizer: SimpleTokenizer, texts: list[str]) -> set[int]:
    """The merges that happen on the way to these texts' tokens."""
    pairs = {"".join(pair): (rank, pair) for pair, rank in tokenizer.bpe_ranks.items()}
    # A merge that happens leaves a token that is in the result or was merged further: walk back
    # from the tokens of the result.
    needed: set[int] = set()
    todo = [tokenizer.decoder[index] for text in texts for index in tokenizer.encode(text)]
    while todo:
        found = pairs.get(todo.pop())
        if found and found[0] not in needed:
            needed.add(found[0])
            todo.extend(found[1])
    return needed


def rows(tokenizer: SimpleTokenizer, texts: list[str]) -> list[list[int]]:
    """Each text's row up to its end token."""
    ids = tokenizer(texts).tolist()
    return [row[: row.index(tokenizer.eot_token_id) + 1] for row in ids]


def main() -> None:
    """Writes the file."""
    tokenizer = SimpleTokenizer()
    every = [*WRITTEN, *block_texts(), *mixed_texts()]
    repaired = [t for t in every if ftfy.fix_text(t) != ftfy.fix_text(t, fix_encoding=False)]
    texts = [text for text in every if text not in repaired]
    repaired += MOJIBAKE
    merges = list(tokenizer.bpe_ranks)
    golden = {
        "versions": {"open_clip": open_clip.__version__, "ftfy": ftfy.__version__},
        "texts": texts,
        "ids": rows(tokenizer, texts),
        "mojibake": repaired,
        "mojibake_ids": rows(tokenizer, repaired),
        "merges": {
            i: " ".join(merges[i]) for i in sorted(needed_merges(tokenizer, texts + repaired))
        },
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    sizes = {name: len(golden[name]) for name in ("texts", "mojibake", "merges")}
    print(f"{OUT}: {sizes}, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
