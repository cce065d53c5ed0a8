"""Checkpoints: asynchronous, atomic, restorable onto another mesh. All of orbax is in this file.

A checkpoint is a plain nested dictionary of arrays (`state`) and a JSON object (`meta`) written
together: a directory appears under its final name only when both are complete, so a process that
is killed leaves either a whole checkpoint or none.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from vlalign.errors import UserError
from vlalign.parallel import hosts
from vlalign.parallel.rules import path_str

_log = logging.getLogger("vlalign")


def to_dict(tree: Any) -> dict[str, Any]:
    """Any pytree of arrays as nested plain dictionaries, by its paths."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    nested: dict[str, Any] = traverse_util.unflatten_dict(
        {path_str(path): leaf for path, leaf in flat}, sep="/"
    )
    return nested


def from_dict(nested: Mapping[str, Any], like: Any) -> Any:
    """The pytree `like` with the leaves that `to_dict` laid out."""
    flat = traverse_util.flatten_dict(nested, sep="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_str(path)], like)


class CheckpointFailed(UserError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run, `RUN/checkpoints/<step>`."""

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        """directory: made if missing.   keep: newest ones kept.   keep_every: steps of those kept
        for ever, None for none.   read_only: touch nothing: another process may be writing.
        """
        self.directory = directory.resolve()
        # The handlers are named so that a process that only reads knows what the items are.
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(read_only=True)
            if read_only
            else ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,  # what a killed process left unfinished
            ),
        )

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> bool:
        """Starts writing; returns as soon as the state may change again. False if it is there.

        Raises CheckpointFailed if an earlier save failed: nothing is lost in silence.
        """
        if step in self._manager.all_steps():
            return False
        self._checked(
            self._manager.save,
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(to_dict(state)), meta=ocp.args.JsonSave(dict(meta))
            ),
            force=True,
        )
        return True

    def wait(self) -> None:
        """Returns when everything started is on disk. Raises CheckpointFailed if it is not."""
        self._checked(self._manager.wait_until_finished)

    def close(self) -> None:
        """Frees the threads. What has failed was said by `wait`."""
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        self._manager.close()

    def _checked(self, action: Any, *args: Any, **kwargs: Any) -> None:
        try:
            action(*args, **kwargs)
        except Exception as error:  # orbax raises whatever its storage layers do
            raise CheckpointFailed(
                f"a checkpoint could not be written below {self.directory}: {_first_line(error)}; "
                f"those of steps {self.steps()} are whole. Mend the cause (a full disk?); the same "
                "command then goes on from the newest"
            ) from error

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def restore_newest(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest readable checkpoint as (state, meta), or None if there is none at all.

        One that cannot be read (truncated by a full disk, say) is set aside under
        `checkpoints-unreadable/` with a warning, and the one before it is taken: the run repeats
        the steps between, exactly. Raises UserError if all of them are unreadable.

        abstract: TrainState of ShapeDtypeStructs with shardings, of any mesh.
        """
        failures = []
        for step in reversed(self.steps()):
            found, failure = None, ""
            try:
                found = self.restore(step, abstract)
            except UserError:
                raise
            except Exception as error:  # orbax raises whatever its storage layers do
                failure = _first_line(error)
            if not hosts.anyone(bool(failure)):
                return found
            failures.append(f"step {step}: {failure or 'another process could not read its part'}")
            self._set_aside(step, failures[-1])
        if failures:
            raise UserError(
                f"no checkpoint in {self.directory} can be read ({'; '.join(failures)}); they were "
                f"moved to {self._aside()}; start again with a new --run-dir, or repair them"
            )
        return None

    def _aside(self) -> Path:
        return self.directory.with_name("checkpoints-unreadable")

    def _set_aside(self, step: int, why: str) -> None:
        target = self._aside() / f"{step}-{time.time_ns()}"
        if hosts.is_main():
            self._aside().mkdir(exist_ok=True)
            (self.directory / str(step)).rename(target)
            _log.warning("checkpoint unreadable, moved to %s (%s)", target, why)
        hosts.barrier(f"set aside {step}")
        self._manager.reload()

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """The whole state at `step` and its meta. Raises UserError if it is of another shape."""
        wanted = to_dict(abstract)
        self._check(step, wanted)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore()
            ),
        )
        return from_dict(restored["state"], abstract), restored["meta"]

    def restore_part(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Only some branches of the state, e.g. {"params": ...}; the rest is not read."""
        wanted = to_dict(abstract)
        self._check(step, wanted, partial=True)
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        with ocp.PyTreeCheckpointer() as reader:
            found = reader.restore(
                self.directory / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=arguments, partial_restore=True
                ),
            )
        part: dict[str, Any] = from_dict(found, abstract)
        return part

    def _check(self, step: int, wanted: Mapping[str, Any], *, partial: bool = False) -> None:
        """Raises UserError listing what is missing, unexpected or of another shape."""
        meta = self._manager.item_metadata(step)["state"]
        if meta is None:
            raise ValueError(f"checkpoint {step} has no readable description of its state")
        have = traverse_util.flatten_dict(dict(meta.tree), sep="/")
        want = traverse_util.flatten_dict(dict(wanted), sep="/")
        shapes = [
            f"{path}: saved {tuple(have[path].shape)}, wanted {tuple(want[path].shape)}"
            for path in sorted(have.keys() & want.keys())
            if tuple(have[path].shape) != tuple(want[path].shape)
        ]
        missing = sorted(want.keys() - have.keys())
        extra = [] if partial else sorted(have.keys() - want.keys())
        problems = [
            f"{len(names)} {what}: {', '.join(names[:20])}"
            for what, names in (
                ("missing", missing),
                ("unexpected", extra),
                ("of another shape", shapes),
            )
            if names
        ]
        if problems:
            raise UserError(
                f"checkpoint {self.directory / str(step)} does not fit this experiment: "
                + "; ".join(problems)
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"


def newest_step(directory: Path) -> int | None:
    """Step of the newest complete checkpoint below `directory`, without opening any."""
    if not directory.is_dir():
        return None
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
    return max(steps, default=None)
