"""The run directory: where everything of a run lies, and the lock that lets one process at it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import tomli_w

from mlxfn.environment import environment
from mlxfn.errors import RunDirError
from mlxfn.files import atomic_write, expand, json_text, open_regular, sweep, utf8, write_error
from mlxfn.sinks.jsonl import cut_back, cut_to

Mode = Literal["new", "resume", "fresh"]

_PATIENCE_S = 0.5  # until a run directory that is held is refused

_FILES = (
    "events.jsonl",
    "report.json",
    "report.html",
    "environment.json",
    "plan.json",
    "config.toml",
)
_HEADING = """\
# Every setting of this run, as it was resolved. Settings without a value are left out.

"""
# What a run writes into its folders; --fresh removes these names and no other.
_EXPORTS = (
    r"adapters\.safetensors|adapter_config\.json|adapter_model\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|config\.json|generation_config\.json|README\.md"
    r"|tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt|chat_template\.(jinja|json)"
)
_FOLDERS = {"checkpoints": r"step-\d+\.npz", "adapters": _EXPORTS, "best": _EXPORTS}
# An export on its way: being filled, or the old one moved aside (see models/folders.py).
_MOVING = re.compile(r"\.(?P<name>adapters|best)\.[0-9a-f]{16}\.(?P<kind>tmp|old)")


@attrs.frozen
class RunDir:
    """The places of a run; nothing is touched by naming them.

    Args:
        path: The folder of the run.

    Example:
        >>> RunDir(Path("runs/first")).events.name
        'events.jsonl'
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """Versions, device and fingerprints."""
        return self.path / "environment.json"

    @property
    def plan(self) -> Path:
        """How the run executes: a resumed run does as it did, whatever is free by then."""
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        """One event per line."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Run states by update."""
        return self.path / "checkpoints"

    @property
    def adapters(self) -> Path:
        """The adapters of the last update."""
        return self.path / "adapters"

    @property
    def best(self) -> Path:
        """The adapters of the best validation loss."""
        return self.path / "best"

    @property
    def report(self) -> Path:
        """What the run came to."""
        return self.path / "report.json"

    @property
    def lock(self) -> Path:
        """The file whose lock the running process holds; it stays when the process ends."""
        return self.path / "run.lock"

    def read_plan(self) -> dict[str, Any] | None:
        """Return what plan.json says; None where there is none that can be read."""
        try:
            plan = json.loads(self.plan.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return plan if isinstance(plan, dict) else None

    def holds_run(self) -> bool:
        """Whether anything of a run is there already."""
        return any(os.path.lexists(self.path / name) for name in _FILES) or any(
            any(_ours(self.path / name)) for name in _FOLDERS
        )

    def write_start(
        self,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        plan: Mapping[str, Any],
    ) -> None:
        """Write config.toml, plan.json and environment.json.

        Args:
            config: Every setting as nested tables, without those that are None.
            fingerprints: What identifies the model and the data.
            plan: How the run executes, where its settings leave that open.

        Raises:
            RunDirError: A file cannot be written.
        """
        self._write(self.config, utf8(_HEADING + tomli_w.dumps(config)))
        self._write(self.plan, utf8(json_text(dict(plan), indent=2) + "\n"))
        around = {**environment(), "fingerprints": dict(fingerprints)}
        self._write(self.environment, utf8(json_text(around, indent=2) + "\n"))

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write report.json.

        Raises:
            RunDirError: It cannot be written.
        """
        self._write(self.report, utf8(json_text(dict(report), indent=2) + "\n"))

    def truncate_events(self, update: int, *, size: int | None = None) -> None:
        """Remove the events after an update from the log, for a run that does them again.

        Args:
            update: The last update that stays; -1 empties the log.
            size: How long the log was when the update was saved. It is cut exactly there, unless
                somebody changed it since.

        Raises:
            RunDirError: The log cannot be read or written.
        """
        try:
            if size is None or not cut_to(self.events, size):
                cut_back(self.events, update)
        except OSError as error:
            raise write_error("the log of events", self.events, error) from error

    def recover(self) -> None:
        """Undo what a killed process left half done: temporary files, exports, a torn event.

        Raises:
            RunDirError: Something there cannot be read or removed.
        """
        try:
            for folder in (self.path, *(self.path / name for name in _FOLDERS)):
                sweep(folder)
            _recover_exports(self.path)
            cut_back(self.events)
        except OSError as error:
            raise write_error("the run directory", self.path, error) from error

    def clear(self) -> None:
        """Remove every file of the run in this folder; files of other origin stay.

        Raises:
            RunDirError: Something cannot be removed.
        """
        try:
            for name in _FOLDERS:
                _clear_folder(self.path / name)
            for name in _FILES:  # the settings go last: until then the folder holds a run
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_error("the previous run", self.path, error) from error

    def _write(self, path: Path, data: bytes) -> None:
        try:
            atomic_write(path, data)
        except OSError as error:
            raise write_error(path.name, path, error) from error


@contextlib.contextmanager
def open_run(path: Path, *, mode: Mode = "new") -> Generator[RunDir]:
    """Hold a run directory for this process, ready to be written into.

    Args:
        path: The folder of the run.
        mode: ``"new"`` makes the folder, or takes one that holds no run; ``"resume"`` takes one
            that does (or was about to); ``"fresh"`` removes the run in it first, and no file of
            other origin.

    Yields:
        The run directory. Another process that wants it is refused until the block ends or this
        process does, however it ends.

    Raises:
        RunDirError: Another process holds it, it holds another run, there is no run to resume,
            or it cannot be written.

    Example:
        >>> import tempfile
        >>> with open_run(Path(tempfile.mkdtemp()) / "first") as run:
        ...     run.write_start({"adapter": {"rank": 8}}, {}, {})
        >>> "rank = 8" in run.config.read_text()
        True
    """
    try:
        run = RunDir(expand(path))
        _check_mode(run, mode)
        run.path.mkdir(parents=True, exist_ok=True)
        lock = _lock(run)
    except OSError as error:
        raise write_error("the run directory", path, error) from error
    try:
        _check_again(run, mode)
        run.recover()
        if mode == "fresh":
            run.clear()
        yield run
    finally:
        os.close(lock)


def _check_mode(run: RunDir, mode: Mode) -> None:
    _check_owner(run.path)
    for name in (*_FILES, *_FOLDERS, run.lock.name):
        _check_own(run.path / name)
    holds = run.holds_run()
    if mode == "resume" and not holds and not run.lock.exists():
        raise RunDirError(
            "there is no run to resume",
            where=run.path,
            remedy="check --output, or leave out --resume to start a new run",
        )
    if mode == "new" and holds:
        raise RunDirError(
            "the output directory holds another run",
            where=run.path,
            remedy="--resume continues it, --fresh removes it first, --output chooses another",
        )
    if mode == "fresh" and holds and not run.lock.exists():
        raise RunDirError(
            "the output directory holds files that no run of mlxfn left there",
            where=run.path,
            remedy="move them away, or choose another folder with --output",
        )


def _check_again(run: RunDir, mode: Mode) -> None:
    """Check what may have changed while nobody held the lock."""
    try:
        _check_mode(run, mode)
    except OSError as error:
        raise write_error("the run directory", run.path, error) from error


def find_run(path: Path) -> RunDir:
    """Return the run directory at a path that is to be read.

    Raises:
        RunDirError: There is no folder, or what is in it cannot be asked for.
    """
    try:
        run = RunDir(expand(path))
        known = run.path.is_dir()
        run.config.exists()
    except OSError as error:
        raise RunDirError(
            "the run directory cannot be read", where=path, got=error.strerror
        ) from error
    if not known:
        raise RunDirError("there is no such run directory", where=path)
    return run


def _check_own(path: Path) -> None:
    if path.is_symlink():
        raise RunDirError(
            "a link stands where a run keeps its own files",
            where=path,
            remedy="remove the link, or choose another folder with --output",
        )
    _check_owner(path)


def _check_owner(path: Path) -> None:
    """Refuse what belongs to another user, who could exchange it at any moment."""
    try:
        owner = path.stat().st_uid
    except OSError:  # not there, or it cannot be asked: opening it will say why
        return
    if owner != os.geteuid() and os.access(path, os.W_OK, effective_ids=True):
        raise RunDirError(
            "the run directory, or a file of the run in it, belongs to another user",
            where=path,
            got=f"user {owner}",
            expected=f"user {os.geteuid()}",
            remedy="choose a folder of your own with --output",
        )


def _lock(run: RunDir) -> int:
    """Return the descriptor that holds the lock; closing it, or dying, gives the lock back."""
    fd = open_regular(run.lock, os.O_RDWR | os.O_CREAT)
    try:
        _wait_for_lock(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0)
        os.close(fd)
        raise _held(run, holder) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wait_for_lock(fd: int) -> None:
    # A process that was just killed, or a program that it was just starting, holds its files for
    # a moment longer: the one that continues the run must not be refused for that.
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PATIENCE_S / 20)
        else:
            return


def _held(run: RunDir, holder: bytes) -> RunDirError:
    pid = holder.decode("ascii", "replace").strip()
    return RunDirError(
        "another process is working in the run directory",
        where=run.path,
        got=f"process {pid}" if pid.isdecimal() else None,
        remedy="wait until it ends, or choose another folder with --output",
    )


def _ours(folder: Path) -> Iterator[Path]:
    """Yield the files that a run wrote into one of its folders."""
    pattern = re.compile(_FOLDERS[folder.name])
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if pattern.fullmatch(path.name))


def _clear_folder(folder: Path) -> None:
    sweep(folder)
    for path in list(_ours(folder)):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _recover_exports(path: Path) -> None:
    """Put back an export that was moved aside for a new one which never came, or remove it."""
    for child in sorted(path.iterdir()):
        match = _MOVING.fullmatch(child.name)
        if match is None or child.is_symlink():
            continue
        if match["kind"] == "old" and not (path / match["name"]).exists():
            child.rename(path / match["name"])
        else:
            shutil.rmtree(child)
