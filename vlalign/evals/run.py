"""What evaluation needs to know of a run: `vlalign.runs.Run`, or a stand-in of a test."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from vlalign.errors import UserError
from vlalign.evals.base import Embed, Evaluator, Tools


class Experiment(Protocol):
    """What evaluation needs of a configuration: its evaluators by name."""

    @property
    def evals(self) -> Mapping[str, Evaluator]:
        """The evaluators by name."""


class Fingerprinted(Protocol):
    """A tokenizer, as far as evaluation is concerned."""

    def fingerprint(self) -> str:
        """A hash of what it does."""


class Run(Protocol):
    """A trained model with what turns images and texts into its embeddings."""

    @property
    def path(self) -> Path:
        """The run directory."""

    @property
    def experiment(self) -> Experiment:
        """The configuration."""

    @property
    def tools(self) -> Tools:
        """The run's evaluation preprocessing and tokenizer."""

    @property
    def embed(self) -> Embed:
        """The model."""

    @property
    def step(self) -> int:
        """The checkpoint's step."""

    @property
    def tokenizer(self) -> Fingerprinted:
        """The run's tokenizer."""


def fingerprints(run: Run) -> dict[str, str]:
    """What an embedding of this run depends on: `run`, `step`, and hashes of the rest.

    `model` is the hash of configuration and step, which determine the weights;
    `tokenizer` and `preprocess` are those of the run directory.
    Raises `UserError` if the directory has no config.txt or preprocess.json.
    """
    config = _bytes(run.path / "config.txt")
    return {
        "run": run.path.resolve().name,
        "step": str(run.step),
        "model": hashlib.sha256(config + f"\nstep {run.step}".encode()).hexdigest(),
        "tokenizer": run.tokenizer.fingerprint(),
        "preprocess": hashlib.sha256(_bytes(run.path / "preprocess.json")).hexdigest(),
    }


def model_key(run: Run) -> str:
    """`fingerprints` as one line without the run's name: a renamed run keeps its stored results."""
    kept = {name: value for name, value in fingerprints(run).items() if name != "run"}
    return json.dumps(kept, sort_keys=True)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): is this a run?") from error
