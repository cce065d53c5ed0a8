"""Versions of everything that a result depends on; finds them without importing anything heavy."""

import importlib.metadata
import platform

import vlalign

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str | None]:
    """Name -> version, of vlalign, Python and the libraries; None: not installed as a package."""
    found: dict[str, str | None] = {
        "vlalign": vlalign.__version__,
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
