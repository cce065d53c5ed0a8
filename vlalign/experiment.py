"""What a run is: one tree of typed, frozen components."""

import dataclasses
import importlib.util
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn

from vlalign import tree
from vlalign.data.pipeline import Data
from vlalign.errors import UserError
from vlalign.evals.base import Evaluator
from vlalign.objectives.base import Objective
from vlalign.parallel.mesh import MeshSpec
from vlalign.parallel.rules import AxisRules
from vlalign.train.config import Train
from vlalign.train.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run, whole.

    name: of the run, default for its directory.   seed: of parameters, data order and dropping.
    model: tower name -> encoder (a linen module).   objectives: name -> what is learned.
    data: pairs, views and tokenizer.   optimizer: how parameters move.   evals: name -> evaluator.
    mesh, rules: the devices, and how parameters lie on them.   train: the loop.
    """

    name: str
    seed: int = 0
    model: Mapping[str, nn.Module]
    objectives: Mapping[str, Objective]
    data: Data
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    evals: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    mesh: MeshSpec = dataclasses.field(default_factory=MeshSpec)
    rules: AxisRules = dataclasses.field(default_factory=AxisRules)
    train: Train = dataclasses.field(default_factory=Train)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise UserError(f"name={self.name!r}: letters, digits, '_', '-' and '.' only")
        if not self.objectives:
            raise UserError("objectives: an experiment needs at least one")


def load_config(path: Path) -> Experiment:
    """The experiment that `config()` of a Python file returns.

    Raises UserError if the file is missing or does not define it.
    """
    if not path.is_file():
        raise UserError(f"no configuration file {path}")
    module = _import_file(path)
    config = getattr(module, "config", None)
    if not callable(config):
        raise UserError(f"{path} defines no function `config() -> Experiment`")
    experiment = config()
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: config() returned {type(experiment).__name__}, not Experiment")
    return experiment


def _import_file(path: Path) -> types.ModuleType:
    """The file as a module of its own name, so that classes defined in it can be found again."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file (it should end in .py)")
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) != str(path.resolve()):
        raise UserError(f"{path}: a module named {path.stem} is there already; rename the file")
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    module.__file__ = str(path.resolve())
    return module


def load_text(path: Path, *, allow_modules: tuple[str, ...] = ()) -> Experiment:
    """The experiment written by a run (`config.txt`). Raises UserError on anything unexpected."""
    experiment = tree.loads(path.read_text(encoding="utf-8"), allow_modules=allow_modules)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} holds a {type(experiment).__name__}, not an Experiment")
    return experiment
