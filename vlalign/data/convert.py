"""Any source to shards of one format: in parallel, resumable, bytes independent of both.

A folder of a conversion holds the shards, `manifest.json` (which record ranges each shard holds,
and the source's fingerprint) and `bad.jsonl` (the records that could not be converted: index, key,
kind and detail). Until it is complete there is a `progress.jsonl` with a line a finished shard.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlalign.data.jobs import pieces, run_jobs
from vlalign.data.record import BadRecord, Record
from vlalign.data.sources import Source
from vlalign.data.writers import FORMATS, Format, partial_of, remove
from vlalign.errors import UserError, nearest

MANIFEST, BAD, PROGRESS = "manifest.json", "bad.jsonl", "progress.jsonl"
_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a conversion made. bytes: of the shards, images of JSONL left out.

    records: written; bad: left out, by kind; resumed: shards that were there already.
    """

    records: int
    bad: dict[str, int]
    shards: int
    resumed: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which records each shard holds: all that decides a conversion's bytes but the source."""

    folder: str
    format: str
    count: int
    shard_size: int
    fingerprint: str

    def ranges(self) -> list[range]:
        return list(pieces(self.count, self.shard_size))

    def path(self, shard: int) -> Path:
        return Path(self.folder) / f"{shard:05d}{FORMATS[self.format].suffix}"

    def name(self, shard: int) -> str:
        path = self.path(shard)
        return path.stem if FORMATS[self.format].joined else path.name

    def joined(self) -> Path | None:
        name = FORMATS[self.format].joined
        return Path(self.folder) / name if name else None

    def head(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "format": self.format,
            "source": self.fingerprint,
            "records": self.count,
            "shard_size": self.shard_size,
        }


def convert(
    source: Source,
    folder: Path,
    format: str,
    *,
    shard_size: int = 10_000,
    workers: int = 0,
    progress: Callable[[int, bool], None] = lambda records, resumed: None,
) -> Outcome:
    """Write all records of a source to `folder`; called again after a kill, it goes on.

    format: of `FORMATS`. shard_size: records a shard. workers: processes; 0: this one; any number
    gives the same bytes. progress: is told how many more records are dealt with, and whether they
    were there already.
    Raises UserError if the folder holds something else, or the conversion of another source.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}{nearest(format, FORMATS)}")
    if shard_size < 1:
        raise UserError(f"shard_size={shard_size}: at least 1 record a shard")
    plan = _Plan(str(folder), format, len(source), shard_size, source.fingerprint())
    if not plan.count:
        raise UserError(f"the source is empty, there is nothing to convert: {source!r}")
    with _locked(folder):
        done = _begin(folder, plan)
        ranges = plan.ranges()
        for shard in done:
            progress(len(ranges[shard]), True)
        resumed = len(done)
        missing = [shard for shard in range(len(ranges)) if shard not in done]
        if missing:
            with (folder / PROGRESS).open("a", encoding="utf-8") as log:
                for entry in run_jobs(_write_shard, (source, plan), missing, workers=workers):
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    done[entry["shard"]] = entry
                    progress(len(ranges[entry["shard"]]), False)
        return _finish(folder, plan, [done[shard] for shard in range(len(ranges))], resumed)


def _write_shard(shared: tuple[Source, _Plan], shard: int) -> dict[str, Any]:
    """Writes one shard, and returns its line of the progress file."""
    source, plan = shared
    form = FORMATS[plan.format]
    indices = range(shard * plan.shard_size, min((shard + 1) * plan.shard_size, plan.count))
    bad: list[dict[str, Any]] = []

    def items() -> Iterator[Any]:
        for index in indices:
            key = ""
            try:
                record = source[index]
                key = record.key
                yield _encoded(form, index, record)
            except BadRecord as error:
                bad.append({"index": index, "key": key, "kind": error.kind, "detail": error.detail})

    path = plan.path(shard)
    remove(partial_of(path))
    remove(partial_of(path.with_suffix("")))
    try:
        records = form.write(path, items())
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return {"shard": shard, "records": records, "bytes": size, "bad": bad}


def _encoded(form: Format, index: int, record: Record) -> Any:
    try:
        return form.encode(index, record)
    except UnicodeEncodeError as error:
        raise BadRecord("invalid text", str(error)) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second conversion out of the folder; a killed one leaves no lock behind."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a conversion is written to a folder of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"another conversion is writing to {folder}; wait for it") from error
    finally:
        os.close(lock)


def _begin(folder: Path, plan: _Plan) -> dict[int, dict[str, Any]]:
    """Checks what is there, writes the manifest of a new conversion, tells the finished shards."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        found = sorted({path.name for path in folder.iterdir()} - {partial_of(manifest).name})
        if found:
            raise UserError(
                f"{folder} is not empty ({found[0]}) and has no {MANIFEST}: convert to a new folder"
            )
        _replace(manifest, _document(plan.head()))
        return {}
    head = _read_manifest(manifest)
    for name, value in plan.head().items():
        if head.get(name) != value:
            raise UserError(_differs(folder, name, head.get(name), value))
    complete = "shards" in head
    entries = list(_entries_of(folder, head) if complete else _read_progress(folder / PROGRESS))
    whole = plan.joined()
    if complete and whole and _has(whole, sum(entry["bytes"] for entry in entries)):
        return {entry["shard"]: entry for entry in entries}
    done = {
        entry["shard"]: entry
        for entry in entries
        if _has(plan.path(entry["shard"]), entry["bytes"])
    }
    # Lines of shards that are no longer there must not be found again, nor half a last line.
    _replace(folder / PROGRESS, "".join(json.dumps(done[shard]) + "\n" for shard in sorted(done)))
    _replace(manifest, _document(plan.head()))
    return done


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _differs(folder: Path, name: str, old: Any, new: Any) -> str:
    if name in ("source", "records"):
        return (
            f"{folder} holds the conversion of another source, or of this one before it changed "
            f"({name} {old}, now {new}): convert to a new folder, or remove this one"
        )
    return (
        f"{folder} was begun with {name}={old}, not {new}: go on with the same, or convert to a "
        "new folder"
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(head, dict) and head.get("version") == _VERSION:
            return head
    except (OSError, ValueError):
        pass
    raise UserError(f"{path} is not the manifest of a conversion by this version of vlalign")


def _read_progress(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of finished shards; half a last line, of a killed conversion, is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            yield {name: entry[name] for name in ("shard", "records", "bytes", "bad")}


def _entries_of(folder: Path, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The finished shards of a complete conversion, in the form of the progress file."""
    bad: dict[int, list[dict[str, Any]]] = {}
    try:
        for text in (folder / BAD).read_text(encoding="utf-8").split("\n")[:-1]:
            line = json.loads(text)
            bad.setdefault(line["index"] // head["shard_size"], []).append(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / BAD} is damaged ({error}): remove {folder}") from error
    for shard, entry in enumerate(head["shards"]):
        counts = {name: entry[name] for name in ("records", "bytes")}
        yield {"shard": shard, **counts, "bad": bad.get(shard, [])}


def _finish(folder: Path, plan: _Plan, entries: list[dict[str, Any]], resumed: int) -> Outcome:
    """Writes what stays of the progress: the bad records, and the manifest with all shards."""
    bad = [line for entry in entries for line in entry["bad"]]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in bad)
    _replace(folder / BAD, text)
    kinds = dict(sorted(Counter(line["kind"] for line in bad).items()))
    shards = [
        {
            "name": plan.name(entry["shard"]),
            "start": indices.start,
            "stop": indices.stop,
            "records": entry["records"],
            "bytes": entry["bytes"],
        }
        for entry, indices in zip(entries, plan.ranges(), strict=True)
    ]
    good = sum(entry["records"] for entry in entries)
    parts = [plan.path(shard) for shard in range(len(shards))]
    whole = plan.joined()
    if whole and all(path.is_file() for path in parts):
        _join(parts, whole)
    _replace(
        folder / MANIFEST, _document({**plan.head(), "good": good, "bad": kinds, "shards": shards})
    )
    (folder / PROGRESS).unlink(missing_ok=True)
    for path in parts if whole else ():
        path.unlink(missing_ok=True)
    return Outcome(
        records=good,
        bad=kinds,
        shards=len(entries),
        resumed=resumed,
        bytes=sum(entry["bytes"] for entry in entries),
    )


def _join(parts: list[Path], whole: Path) -> None:
    partial = partial_of(whole)
    with partial.open("wb") as out:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, out)
    partial.replace(whole)


def _document(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a whole file or none."""
    partial = partial_of(path)
    partial.write_text(text, encoding="utf-8", errors="replace")
    partial.replace(path)
