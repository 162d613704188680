"""Where checkpoints live: published atomically behind the run's back, the newest valid one first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import attrs

from mlxfn.checkpoint import codec, npz
from mlxfn.checkpoint.codec import HostState
from mlxfn.checkpoint.retention import to_remove
from mlxfn.errors import CheckpointError
from mlxfn.files import SYSTEM, System, atomic_write, open_file, read_file, sweep, write_error
from mlxfn.state import RunState

_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,15})\.npz")
_HEAD = 4096  # bytes read to learn how long a manifest is


@attrs.frozen
class Info:
    """One checkpoint in a folder, as its name and its neighbours' manifests tell."""

    step: int  # updates applied
    path: Path
    best: bool  # whether it is the best one so far
    bytes: int


class Found(NamedTuple):
    """A checkpoint that was read."""

    state: RunState
    manifest: dict[str, Any]
    path: Path


class Damaged(NamedTuple):
    """A checkpoint that was skipped."""

    path: Path
    reason: str


@attrs.frozen(eq=False)
class _Save:
    """A state on its way to the disk."""

    host: HostState
    meta: dict[str, Any]
    first: Callable[[], None] | None


class CheckpointStore:
    """The checkpoints of one run.

    A save returns as soon as the state is copied to host memory; a worker thread writes the
    file. At most one write is under way: the next save waits for it. What goes wrong in a write
    is raised by the next :meth:`poll`, :meth:`save`, :meth:`flush` or :meth:`close`, once; the
    checkpoints that were there before are then untouched. An older checkpoint is removed only
    after a newer one is safely published.

    Args:
        folder: The folder of checkpoints; the first save makes it. Nobody else writes into it.
        keep_last_n: How many of the newest checkpoints stay, besides the best, at least 1.
        system: The system calls to publish with.

    Example:
        >>> import tempfile
        >>> import mlx.core as mx
        >>> from mlxfn.state import TrainState
        >>> train = TrainState({"w": mx.ones(2)}, {}, mx.zeros(2, mx.uint32), mx.array(5), mx.array(0))
        >>> with CheckpointStore(Path(tempfile.mkdtemp()), keep_last_n=3) as store:
        ...     path = store.save(RunState(train, epoch=1))
        >>> path.name, store.latest(RunState(train)).state.epoch
        ('step-00000005.npz', 1)
    """

    def __init__(self, folder: Path, *, keep_last_n: int, system: System = SYSTEM) -> None:
        to_remove((), keep_last_n)  # a wrong number is refused now, not after the first save
        self.folder = folder
        self.keep_last_n = keep_last_n
        self.damaged: tuple[Damaged, ...] = ()  # what latest() had to skip
        self._bad: set[Path] = set()  # damaged, and not written anew since
        self._system = system
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._write: Future[None] | None = None
        self._owed: _Save | None = None  # the best one, until it is published

    # Writing

    def save(self, state: RunState, *, meta: Mapping[str, Any] | None = None) -> Path:
        """Copy a state to host memory and start writing it: :meth:`take` and :meth:`write`.

        Args:
            state: The state; its arrays may change or vanish as soon as this returns. The checkpoint
                that its ``best_step`` names is never removed.
            meta: JSON values for the manifest: configuration, fingerprints, environment.

        Returns:
            The path it is going to have.

        Raises:
            RunDirError: The write before this one failed; this state is not saved then.
            CheckpointError: The state's history is too long to be read back.
            TypeError: A value of the state or of ``meta`` is no JSON value.
        """
        return self.write(self.take(state), meta=meta)

    def take(self, state: RunState) -> HostState:
        """Wait for the write under way, and copy a state to host memory.

        Raises:
            RunDirError: The write before this one failed.
            TypeError: A value of the state is no JSON value.
        """
        self.flush()
        return codec.snapshot(state)

    def write(
        self,
        host: HostState,
        *,
        meta: Mapping[str, Any] | None = None,
        first: Callable[[], None] | None = None,
    ) -> Path:
        """Start writing a state that was taken.

        The state of the best update, if its write failed, is written again before this one: no
        published checkpoint names a best one that is not there.

        Args:
            host: What :meth:`take` returned.
            meta: JSON values for the manifest.
            first: Called before the file is published, on the worker: puts on the medium what the
                checkpoint refers to.

        Returns:
            The path it is going to have.

        Raises:
            CheckpointError: The state's history is too long to be read back.
            TypeError: A value of ``meta`` is no JSON value.
        """
        owed = [save for save in (self._owed,) if save and save.host.step != host.step]
        new = _Save(host, dict(meta or {}), first)
        codec.pieces(host, new.meta)  # a wrong value is raised here, where it comes from
        self._write = self._worker.submit(self._publish_all, [*owed, new])
        return self.path_of(host.step)

    def poll(self) -> None:
        """Raise what went wrong in a write that has ended; never wait.

        Raises:
            RunDirError: A checkpoint could not be written.
        """
        if self._write is not None and self._write.done():
            self.flush()

    def flush(self) -> None:
        """Wait until nothing is being written.

        Raises:
            RunDirError: A checkpoint could not be written.
        """
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def close(self) -> None:
        """Finish the last write and end the worker thread.

        Raises:
            RunDirError: A checkpoint could not be written.
        """
        try:
            self.flush()
        finally:
            self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def sweep(self) -> tuple[Path, ...]:
        """Remove what killed writers left behind, and return the paths.

        Raises:
            RunDirError: A leftover cannot be removed.
        """
        try:
            return tuple(sweep(self.folder))
        except OSError as error:
            raise write_error("the folder of checkpoints", self.folder, error) from error

    def drop_after(self, step: int) -> tuple[Path, ...]:
        """Remove the checkpoints of later updates, for a run that goes back to an earlier one.

        Raises:
            RunDirError: A write failed before, or a checkpoint cannot be removed.
        """
        self.flush()
        if self._owed is not None and self._owed.host.step > step:
            self._owed = None
        later = [path for found, path in self._paths().items() if found > step]
        return tuple(self._remove(path) for path in reversed(later))

    def _publish_all(self, saves: list[_Save]) -> None:
        """Write checkpoints, each whole before the next; on the worker."""
        for save in saves:
            best = save.host.run["best_step"] == save.host.step
            if best:
                self._owed = save
            self._publish(save)
            if best:
                self._owed = None
            self._thin(save.host)

    def _publish(self, save: _Save) -> None:
        path = self.path_of(save.host.step)
        if save.first is not None:
            save.first()
        try:
            self._make_folder()
            atomic_write(path, codec.pieces(save.host, save.meta), system=self._system)
        except OSError as error:
            raise write_error(f"the checkpoint of update {save.host.step}", path, error) from error
        self._bad.discard(path)

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            self._system.sync_folder(self.folder.parent)

    def _thin(self, host: HostState) -> None:
        # Only checkpoints of this run's own past count: a damaged one must not push a good one
        # out, and a later one belongs to a past that is being done over.
        paths = {
            step: path
            for step, path in self._paths().items()
            if step <= host.step and path not in self._bad
        }
        protected = {host.step, host.run["best_step"]}
        for step in to_remove(paths, self.keep_last_n, protected):
            self._remove(paths[step])

    def _remove(self, path: Path) -> Path:
        try:
            self._system.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise write_error("an old checkpoint", path, error) from error
        return path

    # Reading

    def latest(self, template: RunState) -> Found | None:
        """Read the newest checkpoint that is undamaged, by its number.

        The damaged ones that were skipped are in :attr:`damaged` afterwards.

        Args:
            template: A state with the names, shapes and dtypes that are expected.

        Returns:
            The checkpoint, or None where there is no valid one.

        Raises:
            CheckpointError: The newest valid one holds other arrays than the template; an older
                one is not taken instead.
        """
        self.flush()
        damaged: list[Damaged] = []
        try:
            for path in reversed(self._paths().values()):
                try:
                    contents = _inspect(path)
                except CheckpointError as error:
                    damaged.append(Damaged(path, error.what))
                else:
                    return Found(_rebuild(contents, template, path), contents.manifest, path)
        finally:
            self.damaged = tuple(damaged)
            self._bad = {path for path, _ in damaged}
        return None

    def load(self, step: int, template: RunState) -> Found:
        """Read the checkpoint of one update.

        Raises:
            CheckpointError: It is missing, damaged or holds other arrays than the template.
        """
        self.flush()
        path = self.path_of(step)
        contents = _inspect(path)
        return Found(_rebuild(contents, template, path), contents.manifest, path)

    def verify(self, path: Path) -> dict[str, Any]:
        """Check every byte of a checkpoint and return its manifest.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        return _inspect(path).manifest

    def path_of(self, step: int) -> Path:
        """Return where the checkpoint of an update is, or would be."""
        return self.folder / f"step-{step:08d}.npz"

    def _paths(self) -> dict[int, Path]:
        """Every checkpoint by its step, oldest first."""
        if not self.folder.is_dir():
            return {}
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in matches if match))

    def list(self) -> tuple[Info, ...]:
        """Return every checkpoint, oldest first, without reading more than a manifest.

        Which one is the best is taken from the newest checkpoint whose manifest can be read.
        """
        paths = self._paths()
        best = next(
            (m["run"]["best_step"] for m in map(_peek, reversed(paths.values())) if m), None
        )
        return tuple(
            Info(step, path, step == best, path.lstat().st_size) for step, path in paths.items()
        )


def _inspect(path: Path) -> codec.Contents:
    try:
        return codec.inspect(read_file(path))
    except CheckpointError as error:
        raise _at(path, error) from error
    except (OSError, MemoryError) as error:
        reason = f"the checkpoint cannot be read: {getattr(error, 'strerror', None) or error!r}"
        raise CheckpointError(reason, where=path) from error


def _rebuild(contents: codec.Contents, template: RunState, path: Path) -> RunState:
    try:
        return codec.rebuild(contents, template)
    except CheckpointError as error:
        raise _at(path, error) from error


def _at(path: Path, error: CheckpointError) -> CheckpointError:
    return CheckpointError(
        error.what, where=path, got=error.got, expected=error.expected, remedy=error.remedy
    )


def _peek(path: Path) -> dict[str, Any] | None:
    try:
        with open_file(path) as file:
            head = file.read(_HEAD)
            size = min(npz.manifest_end(head), os.fstat(file.fileno()).st_size)
            return codec.peek(head + file.read(max(size - len(head), 0)))
    except (OSError, CheckpointError):
        return None
