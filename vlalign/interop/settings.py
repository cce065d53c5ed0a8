"""Other people's JSON configurations, read so that nothing in them goes unseen."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlalign.errors import UserError, nearest

_MOST_BYTES = 1 << 28  # no configuration is that long; some tokenizers have 30 MB


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if it is missing, damaged or no object."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is longer than {_MOST_BYTES >> 20} MiB: not a configuration")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


class Settings:
    """One object of a configuration: every key is taken, known to be harmless, or an error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """where: of which file and object, for messages."""
        self.where = where
        self._values = dict(values)
        self._taken: set[str] = set()

    def take(self, key: str, default: Any) -> Any:
        """The value of a key; the default (theirs) where the file leaves it out or has null.

        Raises UserError if it is of another type than the default.
        """
        self._taken.add(key)
        value = self._values.get(key)
        if value is None:
            return default
        fits = type(value) is type(default) or default is None
        # Whole numbers stand for floats too; JSON has endless ones, which no float holds.
        if not (fits or (type(default) is float and type(value) is int and abs(value) < 1 << 63)):
            kind = type(default).__name__
            raise UserError(f"{self.where}: {key} = {value!r} is not of type {kind}")
        return value

    def whole(self, key: str, default: int) -> int:
        """A count or a size, above 0."""
        value: int = self.take(key, default)
        if not 0 < value < 1 << 31:
            raise UserError(f"{self.where}: {key} = {value} must be a whole number above 0")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = float(self.take(key, default))
        if not 0 < value < math.inf:
            raise UserError(f"{self.where}: {key} = {value} must be a number above 0")
        return value

    def choose(self, key: str, default: str, choices: Mapping[str, Any]) -> Any:
        """What a word stands for with us. Raises UserError if it has no such meaning."""
        value = self.take(key, default)
        if value not in choices:
            raise UserError(
                f"{self.where}: {key} = {value!r} is not known{nearest(value, choices)}"
            )
        return choices[value]

    def require(self, key: str, *values: Any) -> None:
        """Raises UserError unless the key is left out, null, or one of these values."""
        self._taken.add(key)
        value = self._values.get(key)
        if value is not None and value not in values:
            wanted = " or ".join(map(repr, values))
            raise UserError(
                f"{self.where}: {key} = {value!r}; the towers of vlalign compute {wanted} alone, "
                "and would give other numbers"
            )

    def part(self, key: str) -> "Settings":
        """The object under a key; empty where it is left out."""
        value = self.take(key, {})
        return Settings(value, f"{self.where}, {key}")

    def with_defaults(self, **defaults: Any) -> "Settings":
        """The same settings, with these where the file leaves them out."""
        given = {key: value for key, value in self._values.items() if value is not None}
        return Settings({**defaults, **given}, self.where)

    def finish(self, harmless: Iterable[str] = ()) -> tuple[str, ...]:
        """Keys left aside on purpose. Raises UserError if there are others that nobody took.

        harmless: names that change no number of the model, `x_*` for all that begin with `x_`.
        """
        exact = {name for name in harmless if not name.endswith("*")}
        starts = tuple(name[:-1] for name in harmless if name.endswith("*"))
        left = sorted(self._values.keys() - self._taken)
        aside = tuple(key for key in left if key in exact or key.startswith(starts))
        unknown = [f"{key} = {str(self._values[key])[:60]}" for key in left if key not in aside]
        if unknown:
            raise UserError(
                f"{self.where}: vlalign does not know what these do to the numbers, and does not "
                "guess: " + ", ".join(unknown)
            )
        return aside


def side(value: Any, where: str) -> int:
    """One side of a square, given as a number or as two that are equal."""
    sides = value if isinstance(value, list | tuple) else [value]
    if not sides or len(sides) > 2 or len(set(map(str, sides))) != 1 or type(sides[0]) is not int:
        raise UserError(f"{where} = {value!r}: one whole number, as images and patches are square")
    return int(sides[0])


def triple(value: Any, where: str) -> tuple[float, float, float]:
    """Three numbers. Raises UserError for anything else."""
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or not all(type(x) in (int, float) and abs(x) < 1e6 for x in numbers):
        raise UserError(f"{where} = {value!r}: three numbers, one a channel")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
