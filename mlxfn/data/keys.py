"""What a store of tokenized rows depends on, as one name: content, tokenizer, template, settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlxfn.files import atomic_write

_LIBRARIES = ("tokenizers", "transformers", "mlx-lm", "jinja2")
_STILL = 2.0  # seconds a file has to be unchanged before its hash is remembered


def store_key(content: str, tokenizer: str, settings: dict[str, Any]) -> str:
    """Return the name of the store for some content, tokenizer and settings.

    Example:
        >>> store_key("a", "b", {"x": 1}) == store_key("a", "b", {"x": 2})
        False
    """
    parts = [content, tokenizer, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """Return what a tokenizer does to texts and conversations, as one hash.

    Args:
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.

    Returns:
        The hash, in hexadecimal; None for a tokenizer that cannot be written down.
    """
    wrapped = not callable(tokenizer)
    inner: Any = tokenizer._tokenizer if wrapped else tokenizer  # noqa: SLF001 - no other way in
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        return None
    # What comes before is the padding and the truncation of the last call.
    text = backend.to_str().partition('"added_tokens"')[2]
    custom = getattr(tokenizer, "_chat_template", None)
    about = {
        "class": type(inner).__name__,
        "special": {name: str(token) for name, token in inner.special_tokens_map.items()},
        "template": getattr(inner, "chat_template", None),
        "custom": custom and f"{custom.__module__}.{custom.__qualname__}",
        "ends": sorted(tokenizer.eos_token_ids) if wrapped else [inner.eos_token_id],
        "thinking": getattr(tokenizer, "has_thinking", None),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256((text + json.dumps(about, sort_keys=True)).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def content_of(paths: Sequence[Path], memory: Path) -> str:
    """Return the hash of the bytes of some files.

    The hash of a file that was seen before is taken from ``memory`` while its size, inode and
    times are the same: a hundred gigabytes are not read at every start.

    Args:
        paths: The files, in order.
        memory: Folder for what is remembered; made if it is not there.

    Raises:
        OSError: A file cannot be read.
    """
    return hashlib.sha256("".join(_content(path, memory) for path in paths).encode()).hexdigest()


def _content(path: Path, memory: Path) -> str:
    note = memory / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    before = _signature(path)
    with contextlib.suppress(OSError, ValueError, TypeError):
        seen, content = json.loads(note.read_text(encoding="utf-8"))
        if seen == before and isinstance(content, str):
            return content
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    # A file written a moment ago may change again within the same tick of its clock.
    still = time.time() - max(before[2:]) / 1e9 > _STILL
    if still and _signature(path) == before:
        with contextlib.suppress(OSError):
            memory.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(note, json.dumps([before, content]).encode())
    return content


def _signature(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
