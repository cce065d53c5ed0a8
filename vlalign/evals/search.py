"""Search in the records of a run's evaluators, with their embeddings kept beside the run."""

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from vlalign.data.sources import Source
from vlalign.errors import UserError, nearest
from vlalign.evals import ranking
from vlalign.evals.base import IMAGE, TEXT, Embed, Evaluator, Tools
from vlalign.evals.gallery import Gallery, decode, name_of, title
from vlalign.evals.pictures import Hit
from vlalign.evals.results import write_atomically

_FORMAT = "1"  # of the files in search/: another number makes old ones unknown, not wrong


@dataclasses.dataclass(frozen=True)
class Shelf:
    """The searchable records of one source.

    source: where their images are; title: its human name
    images: float32 (n, d), unit-norm; index: int64 (n,), places in the source; names: n
    unique: u different names; texts: float32 (u, d), their embeddings; skipped: broken records
    """

    source: Source
    title: str
    images: np.ndarray
    index: np.ndarray
    names: tuple[str, ...]
    unique: tuple[str, ...]
    texts: np.ndarray
    skipped: int


def sources(evals: Mapping[str, Evaluator], only: Iterable[str] | None = None) -> dict[str, Source]:
    """Evaluator name -> its source, each content once; `only`: of these evaluators.

    Raises `UserError` for an unknown evaluator, one without a source, or a run without any.
    """
    having = {name: found for name, found in _having(evals) if isinstance(found, Source)}
    if not having:
        raise UserError("no evaluator of this run has a `source` of records")
    for name in only or ():
        if name not in having:
            what = "has no `source`" if name in evals else "does not exist in this run"
            raise UserError(f"evaluator {name!r} {what}{nearest(name, having)}")
    once: dict[str, tuple[str, Source]] = {}
    for name in only or having:
        once.setdefault(having[name].fingerprint(), (name, having[name]))
    return dict(once.values())


def _having(evals: Mapping[str, Evaluator]) -> list[tuple[str, object]]:
    return [(name, getattr(evaluator, "source", None)) for name, evaluator in evals.items()]


def shelf(
    source: Source,
    tools: Tools,
    embed: Embed,
    *,
    folder: Path,
    key: str,
    progress: Callable[[str], None] = lambda text: None,
) -> Shelf:
    """The embeddings of a source: read from `folder` if they are there, else computed and kept.

    key: all that they depend on but the source (step, model, preprocessing, tokenizer).
    """
    parts = "\n".join([_FORMAT, key, source.fingerprint()])
    path = folder / f"{hashlib.sha256(parts.encode()).hexdigest()[:32]}.npz"
    arrays = _load(path)
    if arrays is None:
        progress(f"embedding {title(source)} ({len(source):,} records), kept for the next search")
        arrays = _arrays(decode(source, tools), tools, embed)
        _save(path, arrays)
    return Shelf(
        source=source,
        title=title(source),
        images=arrays["images"],
        index=arrays["index"],
        names=tuple(arrays["names"].tolist()),
        unique=tuple(arrays["unique"].tolist()),
        texts=arrays["texts"],
        skipped=int(arrays["skipped"]),
    )


def find_images(
    query_d: np.ndarray, shelves: Iterable[Shelf], top: int
) -> list[tuple[float, str, Shelf, int]]:
    """(score, name, shelf, place in its source) of the best images of all shelves, best first."""
    found = []
    for one in shelves:
        score_1n = ranking.scores(query_d[None, :], one.images)
        for place in ranking.top(score_1n, top)[0]:
            hit = (float(score_1n[0, place]), one.names[place], one, int(one.index[place]))
            found.append(hit)
    return sorted(found, key=lambda hit: -hit[0])[:top]


def find_names(query_d: np.ndarray, shelves: Iterable[Shelf], top: int) -> list[tuple[float, str]]:
    """(score, name) of the best names of all shelves, best first, each name once."""
    best: dict[str, float] = {}
    for one in shelves:
        score_1n = ranking.scores(query_d[None, :], one.texts)
        for place in ranking.top(score_1n, top)[0]:
            best.setdefault(one.unique[place], float(score_1n[0, place]))
    ordered = sorted(best.items(), key=lambda item: -item[1])
    return [(score, name) for name, score in ordered[:top]]


def as_hits(found: Iterable[tuple[float, str, Shelf, int]]) -> tuple[Hit, ...]:
    """Hits with their pictures, for a sheet."""
    return tuple(
        Hit(image=one.source[place].image, label=name, score=score)
        for score, name, one, place in found
    )


def _arrays(gallery: Gallery, tools: Tools, embed: Embed) -> dict[str, np.ndarray]:
    names = [name_of(record) for record in gallery.records]
    unique = sorted(set(names))
    return {
        "images": embed(IMAGE, gallery.images),
        "index": gallery.index,
        "names": np.asarray(names, np.str_),
        "unique": np.asarray(unique, np.str_),
        "texts": embed(TEXT, tools.tokens(unique)),
        "skipped": np.asarray(gallery.skipped),
    }


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def _load(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays, or None if they are not there or were damaged (then they are made again)."""
    if not path.is_file():
        return None
    try:
        # From memory: on a damaged file `np.load` would leave its own handle open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile, KeyError):
        return None
