"""Sources for the formats that people have. Each is configuration; `open_source` guesses one."""

from vlalign.data import storage
from vlalign.data.formats.fields import looks_converted
from vlalign.data.formats.tar_scan import IMAGES
from vlalign.data.sources import ArrayRecordSource, Source
from vlalign.errors import UserError

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_ARRAY_RECORD = (".arrayrecord", ".array_record")
_REPORTS = ("bad.jsonl", "progress.jsonl")  # what `vlalign data convert` says of its work
UNDERSTOOD = (
    "tar shards (data/{000..010}.tar), Parquet (*.parquet), a table with paths of images "
    "(.csv, .tsv, .jsonl), ArrayRecord (*.arrayrecord), a prepared TFDS data set (the folder of "
    "dataset_info.json), a folder of those or of images"
)


def open_source(path: str) -> Source:
    """The source that a path, pattern or URL looks like, with its format's usual columns.

    Raises UserError, with what is understood, for anything else.
    """
    path = storage.normal(path)
    if storage.is_folder(path):
        return _of_folder(path)
    ending = path.lower()
    if ending.endswith((".tar", ".parquet", *_ARRAY_RECORD)):
        return _of_files((path,), ending)
    if ending.endswith(_TABLES):
        return _of_table(path)
    raise UserError(f"{path} is in no known format; understood: {UNDERSTOOD}")


def _of_files(paths: tuple[str, ...], ending: str) -> Source:
    # Imported when asked for: pyarrow and its like cost time that most runs need not spend.
    if ending.endswith(".tar"):
        from vlalign.data.formats.webdataset import WebDatasetSource, is_converted

        converted = is_converted(next(iter(storage.expand(paths))))
        return WebDatasetSource(shards=paths, converted=converted)
    if ending.endswith(".parquet"):
        return _of_parquet(paths)
    return ArrayRecordSource(paths=storage.expand(paths))


def _of_folder(path: str) -> Source:
    from vlalign.data.formats import folder, tfds

    if tfds.is_prepared(path):
        return _of_tfds(path)
    endings = (".tar", ".parquet", *_ARRAY_RECORD, *_TABLES, *(f".{kind}" for kind in IMAGES))
    found: dict[str, list[str]] = {}
    for name, _ in storage.walk(path):
        if name.rpartition("/")[2] in _REPORTS:
            continue
        ending = next((item for item in endings if name.lower().endswith(item)), None)
        if ending:
            found.setdefault(ending, []).append(storage.join(path, name))
    for ending in (".tar", ".parquet", *_ARRAY_RECORD):
        if ending in found:
            return _of_files(tuple(found[ending]), ending)
    tables = [name for ending in _TABLES for name in found.get(ending, ())]
    if len(tables) == 1:
        return _of_table(tables[0])
    if not found:
        raise UserError(f"{path} holds nothing that is understood: {UNDERSTOOD}")
    if not any(f".{kind}" in found for kind in IMAGES):
        raise UserError(f"{path} holds several tables; name one: {', '.join(sorted(tables)[:5])}")
    return folder.FolderSource(directory=path)


def _first(wanted: tuple[str, ...], names: list[str]) -> list[str]:
    return [name for name in wanted if name in names][:1]


_IMAGE_COLUMNS = ("image", "jpg", "png", "img", "filepath", "file_name", "path", "image_path")
_CAPTION_COLUMNS = (
    "caption",
    "captions",
    "text",
    "title",
    "txt",
    "alt_text",
    "TEXT",
)


def _guessed(path: str, names: list[str]) -> tuple[str, dict[str, str], str | None]:
    """Columns of image, captions, label among those there are."""
    image = _first(_IMAGE_COLUMNS, names)
    if not image:
        shown = ", ".join(names[:20])
        raise UserError(f"{path}: which column is the image? It has {shown}; name it in a config")
    label = _first(("label", "labels", "class"), names)
    captions = {name: "alt" for name in _first(_CAPTION_COLUMNS, names)}
    return image[0], captions, label[0] if label else None


def _of_parquet(paths: tuple[str, ...]) -> Source:
    from vlalign.data.formats import parquet

    names = parquet.column_names(paths)
    if looks_converted(names) and "image" in names:
        return parquet.ParquetSource(files=paths, converted=True)
    image, captions, label = _guessed(paths[0], names)
    return parquet.ParquetSource(files=paths, image=image, captions=captions, label=label)


def _of_table(path: str) -> Source:
    from vlalign.data.formats import table

    names = table.column_names(path)
    if looks_converted(names) and "image" in names:
        return table.TableSource(file=path, image="image", converted=True)
    image, captions, label = _guessed(path, names)
    return table.TableSource(file=path, image=image, captions=captions, label=label)


def _of_tfds(path: str) -> Source:
    from vlalign.data.formats import tfds

    splits, names = tfds.splits_and_features(path)
    image, captions, label = _guessed(path, names)
    split = "train" if "train" in splits else splits[0]
    return tfds.TfdsSource(directory=path, split=split, image=image, captions=captions, label=label)
