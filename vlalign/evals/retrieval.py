"""Text-to-image and image-to-text retrieval, with several right answers a query."""

import dataclasses
from collections.abc import Hashable

import numpy as np

from vlalign.data.sources import Source
from vlalign.errors import UserError, nearest
from vlalign.evals import ranking
from vlalign.evals.base import IMAGE, TEXT, Embed, Estimate, Tools, check_every
from vlalign.evals.gallery import Gallery, decode, group_of, name_of, select, title
from vlalign.evals.intervals import mean_estimates, median_estimate
from vlalign.evals.pictures import Hit, Sheet, SheetRow


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `Retrieval.prepare` makes.

    gallery: all good records; rows: int64 (n,), those of them that have a caption
    texts: m captions; tokens: int32 (m, l); owner: int64 (m,), the place in `rows` of each
    to_images: right images of each text; to_texts: right texts of each image
    skipped: records left out, broken or without such a caption; total: records of the source
    """

    gallery: Gallery
    rows: np.ndarray
    texts: tuple[str, ...]
    tokens: np.ndarray
    owner: np.ndarray
    to_images: ranking.Positives
    to_texts: ranking.Positives
    skipped: int
    total: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Recall@k and median rank in both directions, as CLIP_benchmark: a hit is any right answer.

    An image is right for a text if their records share the group, or if one of the image's own
    captions is the same text (case and spaces aside). Ties count against the model. Results:
    `t2i_recall@k`, `i2t_recall@k`, `t2i_median_rank`, `i2t_median_rank`, `skipped` (records that
    are broken or have no such caption, of all records).

    source: the records to search in
    every: steps between evaluations during training; 0: only at the end
    language: of the captions, as the source names it
    caption_kind: which captions are queries (`name`, `alt`, `short`, ...); all of this kind
    ks: the cut-offs k of recall@k
    """

    source: Source
    every: int = 0
    language: str = "en"
    caption_kind: str = "name"
    ks: tuple[int, ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        check_every(self.every)
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"ks={self.ks}: cut-offs of recall@k must be >= 1, at least one")

    def prepare(self, tools: Tools) -> Prepared:
        """Reads the source and finds the right answers.

        Raises `UserError` if no record has a caption of this language and kind.
        """
        gallery = decode(self.source, tools)
        captions = [
            select(record, language=self.language, kind=self.caption_kind)
            for record in gallery.records
        ]
        rows = [row for row, found in enumerate(captions) if found]
        if not rows:
            raise UserError(self._no_captions(gallery))
        texts = tuple(caption.text for row in rows for caption in captions[row])
        sizes = [len(captions[row]) for row in rows]
        owner = np.repeat(np.arange(len(rows)), sizes)
        groups = [("group", group_of(gallery.records[row])) for row in rows]
        equal = [("text", _canonical(text)) for text in texts]
        text_tags: list[list[Hashable]] = [
            [groups[place], tag] for place, tag in zip(owner, equal, strict=True)
        ]
        starts = np.cumsum([0, *sizes])
        image_tags: list[list[Hashable]] = [
            [group, *equal[starts[place] : starts[place + 1]]] for place, group in enumerate(groups)
        ]
        return Prepared(
            gallery=gallery,
            rows=np.asarray(rows, np.int64),
            texts=texts,
            tokens=tools.tokens(texts),
            owner=owner,
            to_images=ranking.positives(text_tags, image_tags),
            to_texts=ranking.positives(image_tags, text_tags),
            skipped=len(self.source) - len(rows),
            total=len(self.source),
        )

    def evaluate(self, prepared: Prepared, embed: Embed) -> dict[str, Estimate]:
        """Recalls in [0, 1], median ranks from 1, and the count `skipped`."""
        zimg_nd, ztxt_md = _embeddings(prepared, embed)
        t2i_m = ranking.best_ranks(ztxt_md, zimg_nd, prepared.to_images)
        i2t_n = ranking.best_ranks(zimg_nd, ztxt_md, prepared.to_texts)
        return {
            **self._direction("t2i", t2i_m, prepared.owner),
            **self._direction("i2t", i2t_n, None),
            "skipped": Estimate.exact(prepared.skipped, prepared.total),
        }

    def pictures(self, prepared: Prepared, embed: Embed) -> tuple[Sheet, ...]:
        """Queries and their first 8 images: the best, typical and worst third of a sheet each."""
        zimg_nd, ztxt_md = _embeddings(prepared, embed)
        rank_m = ranking.best_ranks(ztxt_md, zimg_nd, prepared.to_images)
        rows = tuple(
            self._row(prepared, query, int(rank_m[query]), note, zimg_nd, ztxt_md)
            for note, query in _examples(rank_m, prepared.texts)
        )
        return (Sheet(title=f"text to image, {title(self.source)}", rows=rows),)

    def _direction(
        self, name: str, rank_q: np.ndarray, clusters_q: np.ndarray | None
    ) -> dict[str, Estimate]:
        hits_qk = rank_q[:, None] <= np.asarray(self.ks)[None, :]
        recalls = mean_estimates(hits_qk, clusters_q)
        return {
            **{f"{name}_recall@{k}": found for k, found in zip(self.ks, recalls, strict=True)},
            f"{name}_median_rank": median_estimate(rank_q, clusters_q),
        }

    def _row(
        self,
        prepared: Prepared,
        query: int,
        rank: int,
        note: str,
        zimg_nd: np.ndarray,
        ztxt_md: np.ndarray,
    ) -> SheetRow:
        score_1n = ranking.scores(ztxt_md[query : query + 1], zimg_nd)
        right = set(prepared.to_images.of(query).tolist())
        hits = []
        for place in ranking.top(score_1n, 8)[0]:
            row = prepared.rows[place]
            record = self.source[int(prepared.gallery.index[row])]
            hits.append(
                Hit(
                    image=record.image,
                    label=name_of(record),
                    score=float(score_1n[0, place]),
                    right=int(place) in right,
                )
            )
        return SheetRow(
            query=prepared.texts[query],
            note=note,
            detail=f"first right answer at rank {rank:,}",
            hits=tuple(hits),
        )

    def _no_captions(self, gallery: Gallery) -> str:
        seen = {
            f"{caption.kind} ({caption.language})"
            for record in gallery.records
            for caption in record.captions
        }
        wanted = f"{self.caption_kind} ({self.language})"
        return f"{title(self.source)} has no captions {wanted}{nearest(wanted, seen)}"


def _canonical(text: str) -> str:
    return " ".join(text.casefold().split())


def _embeddings(prepared: Prepared, embed: Embed) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm image (n, d) and text (m, d) embeddings of the records that take part."""
    # The whole gallery is embedded, also rows without a caption: it is one array for all evaluators
    # of this source, which `remember` encodes once.
    zimg_nd = embed(IMAGE, prepared.gallery.images)[prepared.rows]
    return zimg_nd, embed(TEXT, prepared.tokens)


def _examples(rank_m: np.ndarray, texts: tuple[str, ...], each: int = 4) -> list[tuple[str, int]]:
    """(note, query): the `each` best, the middle ones and the worst, no text twice."""
    first_of = {_canonical(text): query for query, text in reversed(list(enumerate(texts)))}
    query_u = np.asarray(sorted(first_of.values()))
    # Among equal ranks the order is shuffled, or "best" would always be the first of the source.
    shuffled_u = np.random.default_rng(0).permutation(query_u)
    order_u = shuffled_u[np.argsort(rank_m[shuffled_u], kind="stable")]
    if len(order_u) < 3 * each:
        return [("", int(query)) for query in order_u]
    middle = (len(order_u) - each) // 2
    picked = [("best", order_u[:each]), ("typical", order_u[middle : middle + each])]
    picked.append(("worst", order_u[-each:]))
    return [(note, int(query)) for note, queries in picked for query in queries]
