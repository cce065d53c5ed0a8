"""Finds configuration files: a path of the user's, or one that vlalign ships."""

import argparse
from pathlib import Path

from vlalign.errors import UserError, nearest

DEFAULT = "emoji_clip"

_PACKAGE = Path(__file__).resolve().parents[1]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, the overrides of it, and the devices it is laid over."""
    parser.add_argument(
        "config",
        nargs="?",
        help="a Python file with `def config() -> Experiment`, or the name of a shipped one "
        f"(default: {DEFAULT})",
    )
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a value, as in train.steps=500 or model.image.width=256; repeatable; "
        "`vlalign show CONFIG` lists the paths",
    )
    parser.add_argument(
        "--devices", type=int, help="simulate this many CPU devices (default: the real ones)"
    )


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with vlalign: name -> file.

    A wheel carries them as `vlalign/configs`; an editable installation reads the checkout's.
    """
    packaged = _PACKAGE / "configs"
    folder = packaged if packaged.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def find_config(name: str | None) -> Path:
    """The file of the configuration `name`: a path, or the name of a shipped one.

    `None` is the default, `emoji_clip`. `configs/NAME.py` works from every directory.
    Raises `UserError` with the shipped names if there is none.
    """
    wanted = Path(DEFAULT if name is None else name)
    if name is not None and wanted.is_file():
        if wanted.suffix != ".py":
            raise UserError(f"configuration {name!r} is not a Python file (*.py)")
        return wanted
    shipped = shipped_configs()
    is_shipped_name = wanted.suffix in ("", ".py") and wanted.parent in (Path(), Path("configs"))
    if is_shipped_name and wanted.stem in shipped:
        return shipped[wanted.stem]
    raise UserError(
        f"no configuration {str(wanted)!r}: no such file here, and not one that vlalign ships"
        f"{nearest(wanted.stem, shipped)} (shipped: {', '.join(shipped) or 'none'})"
    )
