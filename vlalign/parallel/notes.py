"""A board of texts that all processes share, over jax's coordination service."""

from typing import Any


class Notes:
    """A small board of texts that all processes read and write, also while a collective hangs.

    With one process a plain dict. Make it once and hand it on.
    """

    def __init__(self) -> None:
        self._client: Any = getattr(service(), "client", None)
        self._own: dict[str, str] = {}

    def put(self, key: str, text: str) -> None:
        """Writes, or writes over, one note."""
        if self._client is None:
            self._own[key] = text
        else:
            self._client.key_value_set(f"vlalign/{key}", text, allow_overwrite=True)

    def all(self, prefix: str) -> dict[str, str]:
        """The notes whose keys are below `prefix` ("step" has "step/0", "step/1"), by whole key."""
        if self._client is None:
            own = sorted(self._own.items())
            return {key: text for key, text in own if key.startswith(f"{prefix}/")}
        found = self._client.key_value_dir_get(f"vlalign/{prefix}/")
        return {key.removeprefix("vlalign/"): text for key, text in sorted(found)}


def process_id() -> int:
    """As `jax.process_index()`, but jax need not have devices for it."""
    return getattr(service(), "process_id", 0)


def service() -> Any:
    """jax's end of the coordination service: `client` (None: one process), `process_id`, ...

    jax 0.10 to 0.12 has no public way to it: this private one is orbax's too. Where it has moved,
    notes are seen by their own process only, and nothing else changes.
    """
    try:
        from jax._src import distributed

        return distributed.global_state
    except (ImportError, AttributeError):
        return None
