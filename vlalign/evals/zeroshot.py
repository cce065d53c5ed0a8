"""Zero-shot classification: the class whose prompts lie nearest to the image."""

import dataclasses

import numpy as np

from vlalign.data.record import Record
from vlalign.data.sources import Source
from vlalign.errors import UserError, nearest
from vlalign.evals import ranking
from vlalign.evals.base import IMAGE, TEXT, Embed, Estimate, Tools, check_every
from vlalign.evals.gallery import Gallery, decode, title
from vlalign.evals.intervals import class_mean_estimate, mean_estimates


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `ZeroShot.prepare` makes.

    gallery: all good records; rows: int64 (n,), those of them that have the label
    truth: int64 (n,), their class; names: c classes, sorted
    tokens: int32 (c * t, l), all templates of class 0, then those of class 1, ...
    skipped: records left out, broken or without the label; total: records of the source
    """

    gallery: Gallery
    rows: np.ndarray
    truth: np.ndarray
    names: tuple[str, ...]
    tokens: np.ndarray
    skipped: int
    total: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Top-1, top-5 and mean per-class recall, as CLIP_benchmark.

    Classifier (Radford et al. 2021, section 3.1.4): for each class encode all templates, normalise
    each, mean, normalise. Ties count against the model. Results: `top1`, `top5` (with 5 classes or
    more), `mean_per_class_recall`, `classes` (their number), `skipped` (records that are broken or
    have no such label, of all records).

    source: the labelled records
    every: steps between evaluations during training; 0: only at the end
    label: which of `Record.labels` is the class; `label` is `Record.label`
    templates: prompts; `{}` stands for the class
    """

    source: Source
    every: int = 0
    label: str = "category"
    templates: tuple[str, ...] = ("{}", "a picture of {}", "an icon of {}")

    def __post_init__(self) -> None:
        check_every(self.every)
        bad = [template for template in self.templates if template.count("{}") != 1]
        if bad or not self.templates:
            raise UserError(
                f"templates={self.templates}: each needs one {{}} for the class"
                + (f", unlike {bad[0]!r}" if bad else "")
            )

    def prepare(self, tools: Tools) -> Prepared:
        """Reads the source and writes the prompts.

        Raises `UserError` if no record has the label or all have the same class.
        """
        gallery = decode(self.source, tools)
        classes = [_label(record, self.label) for record in gallery.records]
        names = tuple(sorted({name for name in classes if name is not None}))
        if len(names) < 2:
            raise UserError(self._too_few(gallery, names))
        number = {name: place for place, name in enumerate(names)}
        labelled = [(row, number[name]) for row, name in enumerate(classes) if name is not None]
        prompts = [template.replace("{}", name) for name in names for template in self.templates]
        row_truth_n2 = np.asarray(labelled, np.int64)
        return Prepared(
            gallery=gallery,
            rows=row_truth_n2[:, 0],
            truth=row_truth_n2[:, 1],
            names=names,
            tokens=tools.tokens(prompts),
            skipped=len(self.source) - len(labelled),
            total=len(self.source),
        )

    def evaluate(self, prepared: Prepared, embed: Embed) -> dict[str, Estimate]:
        """Accuracies in [0, 1], and the counts `classes` and `skipped`."""
        zimg_nd = embed(IMAGE, prepared.gallery.images)[prepared.rows]
        ztxt_td = embed(TEXT, prepared.tokens)
        class_cd = classifier(ztxt_td.reshape(len(prepared.names), len(self.templates), -1))
        starts = np.arange(len(prepared.truth) + 1)
        rank_n = ranking.best_ranks(zimg_nd, class_cd, ranking.Positives(prepared.truth, starts))
        ks = (1, 5) if len(prepared.names) >= 5 else (1,)
        tops = mean_estimates(rank_n[:, None] <= np.asarray(ks)[None, :])
        return {
            **{f"top{k}": found for k, found in zip(ks, tops, strict=True)},
            "mean_per_class_recall": class_mean_estimate(rank_n <= 1, prepared.truth),
            "classes": Estimate.exact(len(prepared.names), len(prepared.names)),
            "skipped": Estimate.exact(prepared.skipped, prepared.total),
        }

    def _too_few(self, gallery: Gallery, names: tuple[str, ...]) -> str:
        where = title(self.source)
        if names:
            return f"{where}: all records have the same {self.label!r}, {names[0]!r}"
        known = {name for record in gallery.records for name in record.labels}
        known |= {"label" for record in gallery.records if record.label is not None}
        return f"{where}: no record has a label {self.label!r}{nearest(self.label, known)}"


def classifier(ztxt_ctd: np.ndarray) -> np.ndarray:
    """Float32 (c, d): the normalised mean of each class's normalised prompts (c, t, d)."""
    return _unit(_unit(ztxt_ctd.astype(np.float64)).mean(axis=1)).astype(np.float32)


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)


def _label(record: Record, label: str) -> str | None:
    return record.label if label == "label" else record.labels.get(label)
