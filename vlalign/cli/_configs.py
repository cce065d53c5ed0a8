"""Finds configuration files: a path of the user's, or one that vlalign ships."""

from pathlib import Path

from vlalign.errors import UserError, nearest

DEFAULT = "emoji_clip"

_PACKAGE = Path(__file__).resolve().parents[1]


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
