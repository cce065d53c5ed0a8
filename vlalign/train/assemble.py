"""From an experiment to the parts that train or run it: mesh, tokenizer, plan of the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.tokenizers.load import load_tokenizer
from vlalign.data.views import ImagePreparation
from vlalign.errors import UserError, nearest
from vlalign.evals.base import Tools
from vlalign.parallel import hosts
from vlalign.parallel.mesh import check_batch
from vlalign.train.feed import HOST_FIELDS
from vlalign.train.state import Blueprint, blueprint

if TYPE_CHECKING:
    from vlalign.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What follows from an experiment, a tokenizer and the devices at hand.

    example: batch field -> array with the right shape behind the leading axis.
    """

    mesh: Mesh
    tokenizer: TextTokenizer
    plan: Blueprint
    example: dict[str, np.ndarray]

    def batch_shapes(
        self, batch_size: int, example: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Field -> shape and dtype of a global batch on the device.

        example: a batch of another part of the run (`Data.sizes`); None: the one in evaluation.
        """
        return {
            name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype)
            for name, array in (self.example if example is None else example).items()
            if name not in HOST_FIELDS
        }


def assemble(
    experiment: Experiment, tokenizer: TextTokenizer, *, mesh: Mesh | None = None
) -> Assembly:
    """Checks that the parts of an experiment fit each other and plans its state.

    mesh: default, the experiment's over all devices. Raises UserError naming what does not fit.
    """
    mesh = experiment.mesh.build() if mesh is None else mesh
    example = {
        name: array
        for name, array in experiment.data.example(tokenizer).items()
        if name not in HOST_FIELDS
    }
    batch_size, parts = experiment.data.batch_size, experiment.train.micro_batches
    check_batch(batch_size, mesh, where="data.batch_size")
    if batch_size % parts:
        raise UserError(f"data.batch_size={batch_size} does not divide into {parts} micro-batches")
    check_batch(batch_size // parts, mesh, where="data.batch_size / train.micro_batches")
    _check_parts(experiment, tokenizer, example)
    plan = blueprint(
        experiment.model,
        experiment.objectives,
        experiment.optimizer,
        example,
        mesh,
        experiment.rules,
        steps=experiment.train.steps,
        batch_size=batch_size,
        ema=experiment.train.ema is not None,
    )
    return Assembly(mesh, tokenizer, plan, example)


def _check_parts(experiment: Experiment, tokenizer: TextTokenizer, example: dict[str, Any]) -> None:
    for name, objective in experiment.objectives.items():
        for field in objective.fields():
            if field not in example:
                raise UserError(
                    f"objectives.{name} reads the view '{field}', which data.views does not make"
                    f"{nearest(field, example)}"
                )
    for name, module in experiment.model.items():
        _check_pixels(name, module, experiment.data.views.get(name))
        rows, masking = getattr(module, "vocab_size", None), None
        if name in experiment.data.views:
            masking = getattr(experiment.data.views[name], "masking", None)
        least = tokenizer.vocab_size if masking is None else masking.vocab_size(tokenizer)
        if rows is not None and rows < least:
            raise UserError(
                f"model.{name}.vocab_size={rows} is below the tokenizer's {least}; "
                f"set it to at least that"
            )


def _check_pixels(name: str, module: Any, view: object) -> None:
    """Raises UserError where pixels are prepared for one normalisation and given another."""
    if not isinstance(view, ImagePreparation) or not hasattr(module, "pixel_mean"):
        return
    spec = view.spec()
    for field in ("mean", "std"):
        given, wanted = getattr(module, f"pixel_{field}"), spec.get(field)
        if wanted is not None and tuple(wanted) != tuple(given):
            raise UserError(
                f"model.{name}.pixel_{field}={tuple(given)}, but data.views.{name} prepares images "
                f"for {tuple(wanted)}; set model.{name}.pixel_{field} to that"
            )


def run_tokenizer(experiment: Experiment, run_dir: Path) -> TextTokenizer:
    """The run's tokenizer: the saved one, or a new one trained on the captions and saved.

    Of several processes the first makes it; all read the one file.
    """
    path = run_dir / "tokenizer.json"
    if hosts.is_main() and not path.exists():
        experiment.data.fit_tokenizer().save(path)
    hosts.barrier("tokenizer")
    return load_tokenizer(path)


def run_tools(experiment: Experiment, tokenizer: TextTokenizer) -> Tools:
    """What evaluators turn raw images and texts into inputs with."""
    view: object = experiment.data.views.get("image")
    if not isinstance(view, ImagePreparation):
        raise UserError(
            "data.views.image must be a view with `evaluate` and `spec`, such as ImageView, "
            "RandomResizedCrop or Preprocess: evaluation prepares images by it"
        )
    return Tools(
        image=view.evaluate,
        tokens=lambda texts: tokenizer.encode(list(texts))[0],
    )
