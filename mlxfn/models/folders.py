"""Folders that are either the old one or the new one, never half of either."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxfn.errors import RunDirError
from mlxfn.files import SYSTEM, atomic_write, expand, write_error


def publish_folder(
    folder: str | Path, fill: Callable[[Path], None], *, what: str, marker: str
) -> Path:
    """Write a folder beside its place and move it there when it is whole.

    A folder of the same kind that is there already is replaced. A kill leaves the old one or
    the new one, and at the worst (between two renames) both under hidden names beside it.

    Args:
        folder: Where it is to be; missing parents are made.
        fill: Writes the files into the empty folder it is given, each of them synced.
        what: What it is, for error messages: "the adapter folder".
        marker: A file that tells a folder of this kind, which may be replaced, from another.

    Returns:
        The folder.

    Raises:
        RunDirError: It cannot be written, or something else is in its place.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "a"
        >>> folder = publish_folder(
        ...     place, lambda f: write_json(f / "x.json", {}), what="a", marker="x.json")
        >>> [file.name for file in folder.iterdir()]
        ['x.json']
    """
    try:
        folder = expand(folder).absolute()
        _refuse_others(folder, what, marker)
    except OSError as error:
        raise write_error(what, Path(folder), error) from error
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        fill(temporary)
        SYSTEM.sync_folder(temporary)
        _move_into_place(temporary, folder)
    except OSError as error:
        raise write_error(what, folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _refuse_others(folder: Path, what: str, marker: str) -> None:
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and ((folder / marker).is_file() or not any(folder.iterdir())):
        return
    raise RunDirError(
        f"{what} would replace something else",
        where=folder,
        got="a folder with other files" if folder.is_dir() else "a file",
        expected=f"nothing, an empty folder, or a folder with {marker}",
        remedy="choose another folder",
    )


def _move_into_place(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.old")
    if folder.exists():
        folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    SYSTEM.sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(file: Path, content: Any) -> None:
    """Write a value as indented JSON, synced.

    Args:
        file: Where to; its folder exists.
        content: JSON values.
    """
    atomic_write(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
