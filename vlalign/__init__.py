"""vlalign: train, align and evaluate models that put images and text into one space.

`vlalign.load("hf://org/name")` is a pre-trained model in use (`vlalign.pretrained`). Importing the
package is cheap and starts no accelerator: import the parts by their own names
(`vlalign.experiment`, `vlalign.losses`, ...).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlalign.pretrained import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, which needs jax, is imported when it is asked for."""
    if name == "load":
        return importlib.import_module("vlalign.pretrained").load
    raise AttributeError(f"module 'vlalign' has no attribute {name!r}")
