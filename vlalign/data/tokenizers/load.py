"""The file of any tokenizer of vlalign, read."""

import json
from collections.abc import Callable
from pathlib import Path

from vlalign.data.tokenizer import Tokenizer
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.tokenizers.clip import ClipTokenizer
from vlalign.data.tokenizers.hub import HubRows
from vlalign.data.tokenizers.pieces import PieceRows
from vlalign.errors import UserError

_KINDS: dict[str, Callable[[str], TextTokenizer]] = {
    "clip": ClipTokenizer,
    "hub": HubRows,
    "pieces": PieceRows,
}


def load_tokenizer(path: Path | str) -> TextTokenizer:
    """Read a saved tokenizer; UserError naming the file if it is missing or damaged."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        state = json.loads(text)
        kind = state.get("vlalign") if isinstance(state, dict) else None
        if kind is None:
            return Tokenizer.load(path)
        return _KINDS[kind](text)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception for a wrong structure
        raise UserError(f"{path} is not a tokenizer of vlalign: {error}") from error
