"""The packaged data: complete, both styles alike, licensed, and never opened by pickle."""

import collections
import io

import pytest
from PIL import Image

from vlalign.data.emoji import ASSETS, LANGUAGES, Emoji
from vlalign.data.sources import Source
from vlalign.errors import UserError

COUNT = 1911


@pytest.mark.parametrize("style", ["noto", "twemoji"])
def test_every_record_is_whole(style: str) -> None:
    source = Emoji(style=style)  # type: ignore[arg-type]
    assert isinstance(source, Source)
    assert len(source) == COUNT
    records = [source[i] for i in range(COUNT)]
    for record in records:
        assert record.key == f"{style}/{record.group}"
        assert set(record.labels) == {"category", "subcategory"}
        assert [caption.kind for caption in record.captions] == ["name", "keywords"]
        assert record.captions[0].text == record.label
        assert Image.open(io.BytesIO(record.image)).size == (64, 64)
    assert len({record.group for record in records}) == COUNT
    assert len({record.label for record in records}) == COUNT
    assert len({record.labels["category"] for record in records}) == 10
    assert len({record.labels["subcategory"] for record in records}) == 99


def test_every_image_decodes_with_transparency() -> None:
    for style in ("noto", "twemoji"):
        source = Emoji(style=style)  # type: ignore[arg-type]
        for index in range(0, COUNT, 10):
            image = Image.open(io.BytesIO(source[index].image))
            assert image.convert("RGBA").getchannel("A").getextrema()[1] == 255


def test_styles_hold_the_same_concepts_in_the_same_order() -> None:
    noto, twemoji = Emoji(), Emoji(style="twemoji")
    for index in range(COUNT):
        assert noto[index].group == twemoji[index].group
        assert noto[index].captions == twemoji[index].captions
        assert noto[index].image != twemoji[index].image
    assert noto.fingerprint() != twemoji.fingerprint()
    assert noto.fingerprint() == Emoji().fingerprint() != Emoji(languages=("de",)).fingerprint()


def test_known_names() -> None:
    source = Emoji(languages=LANGUAGES)
    by_group = {source[i].group: source[i] for i in range(COUNT)}
    heart = {(c.kind, c.language): c.text for c in by_group["2764-fe0f"].captions}
    assert heart["name", "en"] == "red heart"
    assert heart["keywords", "en"] == "emotion, heart, love, red"
    assert heart["name", "de"] == "rotes Herz"
    assert heart["name", "fr"] == "cœur rouge"
    assert heart["name", "zh"] == "红心"
    assert by_group["1f1eb-1f1f7"].label == "flag: France"
    assert by_group["1f468-200d-1f9b0"].label == "man: red hair"


def test_languages() -> None:
    source = Emoji(languages=LANGUAGES)
    names = collections.Counter(
        caption.language
        for i in range(COUNT)
        for caption in source[i].captions
        if caption.kind == "name"
    )
    assert names == {"en": COUNT, **dict.fromkeys(LANGUAGES[1:], COUNT - 326)}
    sources = {c.source for i in range(COUNT) for c in source[i].captions if c.language != "en"}
    assert sources == {"cldr"}


def test_licences_and_attribution_ship_with_the_data() -> None:
    attribution = (ASSETS / "ATTRIBUTION.md").read_text()
    for name, words in {
        "Apache-2.0": "Apache License",
        "CC-BY-4.0": "Attribution 4.0 International",
        "Unicode-3.0": "UNICODE LICENSE V3",
        "MIT": "The MIT License",
    }.items():
        assert words in (ASSETS / "licenses" / f"{name}.txt").read_text()
        assert name.replace("CC-BY-", "CC BY ") in attribution
    total = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert total < 6_000_000


def test_wrong_choices_name_the_nearest(tmp_path: object) -> None:
    with pytest.raises(UserError, match="unknown emoji style 'tweemoji'; nearest: twemoji"):
        Emoji(style="tweemoji")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown emoji language 'xx'"):
        Emoji(languages=("xx",))
    with pytest.raises(UserError, match="languages is empty"):
        Emoji(languages=())
    with pytest.raises(UserError, match=r"cannot read the emoji text .*concepts\.jsonl\.gz"):
        len(Emoji(directory=str(tmp_path)))
    with pytest.raises(IndexError, match="record 1911 of a source of 1911"):
        Emoji()[COUNT]
