"""One tower alone: weights of a family of encoders whose table of names is in `names/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from flax.core import meta

from vlalign.errors import UserError
from vlalign.interop import hub
from vlalign.interop.formats.common import weights_file
from vlalign.interop.read.weights import read_weights
from vlalign.interop.rows import Table, import_params

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


def load_tower(
    source: str, tower: nn.Module, table: Table, example: jax.ShapeDtypeStruct
) -> dict[str, Any]:
    """Parameters of a tower, nested, float32; no configuration is read, so numerics are yours.

    source: a file of weights, a directory with one, or hf://org/name.   table: of the names in it,
    such as `names.dino.v2_table(tower)`.   example: shape and dtype of an input of the size whose
    learned positions are in the file.
    Raises UserError listing everything that does not fit.
    """
    path = hub.resolve(source) if source.startswith(hub.SCHEME) else Path(source)
    if path.is_dir():
        path = weights_file(path, _WEIGHTS)
    if not path.is_file():
        raise UserError(f"no such file or directory: {source}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(tower.init, key, example)["params"]
    flat = traverse_util.flatten_dict(meta.unbox(boxed), sep="/")
    shapes: Mapping[str, tuple[int, ...]] = {name: tuple(x.shape) for name, x in flat.items()}
    params = import_params(table, read_weights(path).tensors, shapes)
    nested: dict[str, Any] = traverse_util.unflatten_dict(params, sep="/")
    return nested
