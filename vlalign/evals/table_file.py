"""Embeddings as a Parquet file, written chunk by chunk."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlalign.data.record import Record
from vlalign.data.sources import Source
from vlalign.errors import UserError
from vlalign.evals.base import IMAGE, TEXT, Embed, Tools
from vlalign.evals.gallery import Chunk, chunks, group_of


@dataclasses.dataclass
class Written:
    """How many rows of each kind were written, and the records left out, by kind of problem."""

    images: int = 0
    texts: int = 0
    problems: Counter[str] = dataclasses.field(default_factory=Counter)


def write_embeddings(
    path: Path,
    sources: Mapping[str, Source],
    tools: Tools,
    embed: Embed,
    *,
    metadata: Mapping[str, str],
    chunk: int,
    advance: Callable[[int], None] = lambda records: None,
) -> Written:
    """Embeds all images and captions of `sources` (name -> source) into the Parquet file `path`.

    One row group a chunk of records; `metadata` and the counts go into the schema's metadata; the
    file appears under its name when it is complete. `advance` is told of records done.
    Raises `UserError` if there is no good record, or the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = Written()
    try:
        with contextlib.ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for name, source in sources.items():
                for part in chunks(source, tools, chunk):
                    written.problems.update(part.problems)
                    if part.records:
                        table = _table(name, part, tools, embed)
                        if writer is None:
                            writer = stack.enter_context(pq.ParquetWriter(draft, table.schema))
                        writer.write_table(table)
                        written.images += len(part.records)
                        written.texts += table.num_rows - len(part.records)
                    advance(len(part.records) + sum(part.problems.values()))
            if writer is None:
                raise UserError(f"no good record to embed: {dict(written.problems) or 'no data'}")
            skipped = {"skipped": str(written.problems.total())}
            writer.add_key_value_metadata({**metadata, **skipped})
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return written


def _table(name: str, part: Chunk, tools: Tools, embed: Embed) -> pa.Table:
    captions = [(record, caption) for record in part.records for caption in record.captions]
    zimg_nd = embed(IMAGE, part.images)
    ztxt_md = embed(TEXT, tools.tokens([caption.text for _, caption in captions]))
    rows = [*_image_rows(part.records), *_text_rows(captions)]
    columns: dict[str, Any] = {
        "source": pa.array([name] * len(rows), pa.string()),
        **{
            field: pa.array([row[field] for row in rows], pa.string())
            for field in ("key", "kind", "caption_kind", "language", "text", "group")
        },
    }
    z_rd = np.concatenate([zimg_nd, ztxt_md]).astype(np.float32, copy=False)
    flat = pa.array(z_rd.ravel())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, z_rd.shape[1])
    return pa.table(columns)


def _image_rows(records: tuple[Record, ...]) -> Iterator[dict[str, str | None]]:
    for record in records:
        yield {
            "key": record.key,
            "kind": IMAGE,
            "caption_kind": None,
            "language": None,
            "text": None,
            "group": group_of(record),
        }


def _text_rows(captions: list[tuple[Record, Any]]) -> Iterator[dict[str, str | None]]:
    for record, caption in captions:
        yield {
            "key": record.key,
            "kind": TEXT,
            "caption_kind": caption.kind,
            "language": caption.language,
            "text": caption.text,
            "group": group_of(record),
        }
