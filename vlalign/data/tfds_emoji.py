"""The emoji data set as a TFDS builder, and a TFDS data set of that layout as a source.

tensorflow-datasets writes and reads ArrayRecord without TensorFlow as long as images stay encoded
bytes. It is imported only inside the functions here: it is slow, and training does not need it.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlalign.data.emoji import LANGUAGES, STYLES, Emoji
from vlalign.data.record import BadRecord, Caption, Record
from vlalign.data.sources import file_digest
from vlalign.errors import UserError

_CAPTION_FIELDS = ("text", "kind", "language", "source")
_TEXT_FIELDS = ("key", "label", "group", "category", "subcategory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """One split of a data set that `emoji_builder`, or a builder with its features, prepared.

    directory: of the prepared version, such as DATA_DIR/vlalign_emoji/1.0.0.
    split: a TFDS split, such as "noto" or "noto[:10%]".
    """

    directory: str
    split: str

    def __len__(self) -> int:
        return len(_opened(self.directory, self.split))

    def __getitem__(self, index: int) -> Record:
        data = _opened(self.directory, self.split)
        if not 0 <= index < len(data):
            raise IndexError(f"record {index} of a source of {len(data)}")
        try:
            return _record(data[index])
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecord("unreadable record", f"{self.directory}, {index}: {error}") from error

    def fingerprint(self) -> str:
        """sha256 over the data set's files and the split."""
        files = sorted(path for path in Path(self.directory).iterdir() if path.is_file())
        digests = [path.name + file_digest(str(path)) for path in files]
        return hashlib.sha256("\n".join([self.split, *digests]).encode()).hexdigest()


def emoji_builder(data_dir: str | Path) -> Any:
    """The `tfds.core.GeneratorBasedBuilder` of the emoji, with splits "noto" and "twemoji".

    `.download_and_prepare()` writes them below `data_dir` from the packaged data, with captions in
    all languages and in the order of `Emoji`; `.data_dir` then is a `TfdsSource`'s directory.
    """
    return _builder_class()(data_dir=str(data_dir), file_format="array_record")


@functools.cache
def _builder_class() -> Any:
    import tensorflow_datasets as tfds

    class VlalignEmoji(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> Any:
            text, sequence = tfds.features.Text(), tfds.features.Sequence
            features: dict[str, Any] = {name: text for name in _TEXT_FIELDS}
            features["captions"] = sequence({name: text for name in _CAPTION_FIELDS})
            features["image"] = tfds.features.Image(shape=(None, None, None))
            return tfds.core.DatasetInfo(
                builder=self,
                description="1,911 emoji in two styles, with names and keywords in nine languages.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {style: self._generate_examples(style) for style in STYLES}

        def _generate_examples(self, style: Any) -> Iterator[tuple[int, dict[str, Any]]]:
            source = Emoji(style=style, languages=LANGUAGES)
            for index in range(len(source)):
                yield index, _example(source[index])

    return VlalignEmoji


def _example(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "image": record.image,
        "captions": [dataclasses.asdict(caption) for caption in record.captions],
        "label": record.label,
        "group": record.group,
        **record.labels,
    }


def _record(example: dict[str, Any]) -> Record:
    texts = {name: example[name].decode() for name in _TEXT_FIELDS}
    columns = [example["captions"][name] for name in _CAPTION_FIELDS]
    return Record(
        key=texts["key"],
        image=example["image"],
        captions=tuple(
            Caption(*(value.decode() for value in row)) for row in zip(*columns, strict=True)
        ),
        label=texts["label"],
        labels={name: texts[name] for name in ("category", "subcategory")},
        group=texts["group"],
    )


@functools.lru_cache(maxsize=8)
def _opened(directory: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    if not (Path(directory) / "dataset_info.json").is_file():
        raise UserError(f"{directory} is no prepared TFDS data set: it has no dataset_info.json")
    try:
        builder = tfds.builder_from_directory(directory)
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot open split {split!r} of {directory}: {error}") from error
