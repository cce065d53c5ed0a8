"""Any prepared TFDS data set, without TensorFlow."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlalign import tree
from vlalign.data.emoji import LANGUAGES, Emoji
from vlalign.data.formats import open_source
from vlalign.data.formats.tfds import TfdsSource
from vlalign.data.record import BadRecord, Caption
from vlalign.data.sources import Source
from vlalign.data.tfds_emoji import emoji_builder
from vlalign.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> Any:
            features = {
                "picture": tfds.features.Image(shape=(None, None, 3)),
                "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
                "title": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "weight": tfds.features.Scalar(dtype=np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(10):
                yield (
                    i,
                    {
                        "picture": b"" if i == 3 else b"image %d" % i,
                        "captions": [{"text": f"{i} {n}"} for n in range(i % 3)],
                        "title": f"title {i}",
                        "label": i % 2,
                        "weight": i / 2,
                    },
                )

    builder = Small(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


FIELDS: dict[str, Any] = {
    "image": "picture",
    "captions": {"captions/text": "long", "title": "name"},
    "label": "label",
    "weight": "weight",
}


def test_records(directory: str) -> None:
    source = TfdsSource(directory=directory, **FIELDS)
    assert isinstance(source, Source)
    assert tree.loads(tree.dumps(source)) == source == pickle.loads(pickle.dumps(source))
    assert len(source) == 10
    record = source[5]
    assert record.captions == (
        Caption("5 0", "long", "en", "captions/text"),
        Caption("5 1", "long", "en", "captions/text"),
        Caption("title 5", "name", "en", "title"),
    )
    assert (record.key, record.image) == ("train:5", b"image 5")
    assert (record.label, record.weight) == ("dog", 2.5)
    with pytest.raises(BadRecord, match="empty image"):
        source[3]
    with pytest.raises(IndexError, match="record 10 of a source of 10"):
        source[10]
    part = TfdsSource(directory=directory, split="train[5:]", **FIELDS)
    assert part[0].image == b"image 5"
    assert part.fingerprint() != source.fingerprint()
    assert "tensorflow" not in sys.modules


def test_wrong_places_are_named(directory: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no dataset_info\.json"):
        len(TfdsSource(directory=str(tmp_path)))
    with pytest.raises(UserError, match="cannot open split 'test'"):
        len(TfdsSource(directory=directory, split="test", image="picture"))
    with pytest.raises(UserError, match="no feature 'image'"):
        TfdsSource(directory=directory)[0]
    with pytest.raises(UserError, match="which column is the image"):
        open_source(directory)


def test_guessed(tmp_path: Path) -> None:
    builder = emoji_builder(tmp_path)
    builder.download_and_prepare()
    source: Any = open_source(str(builder.data_dir))
    assert (source.split, source.label) == ("noto", "label")
    assert len(source) == 1911
    for index in (0, 1000, 1910):
        assert source[index].captions == Emoji(languages=LANGUAGES)[index].captions
    fields: dict[str, Any] = {"captions": {"captions": "name"}, "label": "label", "key": "key"}
    more = {"labels": ("category", "subcategory"), "group": "group"}
    source = TfdsSource(directory=source.directory, split="noto", **fields, **more)
    assert source[1000] == Emoji(languages=LANGUAGES)[1000]
