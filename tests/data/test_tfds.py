"""TFDS without TensorFlow: prepared from the packaged data, read back as the same records."""

import sys
from pathlib import Path

import pytest

from vlalign.data.emoji import LANGUAGES, Emoji
from vlalign.data.sources import Source
from vlalign.data.tfds_emoji import TfdsSource, emoji_builder
from vlalign.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    builder = emoji_builder(tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_the_same_records(directory: str) -> None:
    source, packaged = (
        TfdsSource(directory=directory, split="twemoji"),
        Emoji(style="twemoji", languages=LANGUAGES),
    )
    assert isinstance(source, Source)
    assert len(source) == len(packaged)
    for index in range(0, len(packaged), 37):
        assert source[index] == packaged[index]
    with pytest.raises(IndexError, match="record 1911 of"):
        source[1911]
    assert "tensorflow" not in sys.modules


def test_a_part_of_a_split_and_fingerprints(directory: str) -> None:
    part = TfdsSource(directory=directory, split="noto[:10]")
    assert [part[i].key for i in range(len(part))] == [Emoji()[i].key for i in range(10)]
    assert part.fingerprint() != TfdsSource(directory=directory, split="noto").fingerprint()


def test_wrong_places_are_named(directory: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no dataset_info\.json"):
        len(TfdsSource(directory=str(tmp_path), split="noto"))
    with pytest.raises(UserError, match="cannot open split 'apple'"):
        len(TfdsSource(directory=directory, split="apple"))
