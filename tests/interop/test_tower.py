"""One tower out of a file, by a table alone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop.convert import load
from vlalign.interop.names.open_clip import image_rows
from vlalign.interop.rows import Table, Unused, under
from vlalign.interop.tower import load_tower

MODEL = Path(__file__).parent / "golden" / "open_clip"
EXAMPLE = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)


def test_an_image_tower_without_its_text() -> None:
    whole = load(str(MODEL), tokenizer="none")
    tower = whole.model["image"]
    assert isinstance(tower, ViT)
    text = ("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*")
    unused = tuple(Unused(name) for name in (*text, "text_projection", "logit_scale"))
    table = Table(under(image_rows(tower), "", "visual."), unused)
    params = load_tower(str(MODEL), tower, table, EXAMPLE)
    jax.tree.map(np.testing.assert_array_equal, params, dict(whole.params["image"]))
    file = str(MODEL / "open_clip_model.safetensors")
    assert jax.tree.structure(load_tower(file, tower, table, EXAMPLE)) == jax.tree.structure(params)
    strict = Table(table.rows, unused[:-1])
    with pytest.raises(UserError, match="1 in the file and not known:\n    logit_scale"):
        load_tower(str(MODEL), tower, strict, EXAMPLE)
    with pytest.raises(UserError, match="no such file"):
        load_tower("nowhere", tower, table, EXAMPLE)
