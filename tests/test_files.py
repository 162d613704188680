"""Publication: old or new and never half, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given

from mlxfn.files import UncertainError, atomic_write, json_text, read_file, sweep, utf8, write_error
from tests.support.faults import CALLS, Dying, Failing, Killed
from tests.support.states import json_values

KILLS = """
import os, sys
from pathlib import Path
from mlxfn.files import atomic_write
from tests.support.faults import Suicidal
for n in range(int(sys.argv[2])):
    folder = Path(sys.argv[1]) / str(n)
    folder.mkdir()
    atomic_write(folder / "f", b"old")
    child = os.fork()
    if child == 0:
        atomic_write(folder / "f", [b"n", b"ew"], system=Suicidal(n))
        os._exit(0)
    print(n, os.waitpid(child, 0)[1])
"""
FULL = """
import resource, sys
from pathlib import Path
from mlxfn.files import atomic_write
path = Path(sys.argv[1]) / "f"
atomic_write(path, b"old" * 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for size in (1000, 1001, 5_000_000):
    try:
        atomic_write(path, b"x" * size)
        print(size, "written")
    except OSError as error:
        print(size, error.errno)
"""


def names(folder):
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_published_whole_and_leaves_nothing_beside_it(tmp_path):
    """In one piece or in many, new or over an old one."""
    path = tmp_path / "f"
    atomic_write(path, b"first")
    atomic_write(path, (memoryview(b"sec"), bytearray(b"on"), b"", b"d"))
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["f"]


def test_a_file_larger_than_one_write_is_whole(tmp_path, monkeypatch):
    """Systems cap the bytes of one write; the rest must follow."""
    monkeypatch.setattr("mlxfn.files._SLICE", 7)
    data = bytes(range(256))
    atomic_write(tmp_path / "f", data)
    assert read_file(tmp_path / "f") == data


def test_the_mode_follows_the_umask(tmp_path):
    """A published file is readable by those whom the user's umask lets."""
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "f", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", CALLS)
def test_a_failing_call_leaves_the_old_file_and_nothing_beside_it(tmp_path, call):
    """Only after the rename is the new one there; then it is there, and the error says so."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    expected = UncertainError if call == "sync_folder" else OSError
    with pytest.raises(expected) as error:
        atomic_write(path, b"new", system=Failing(call, errno.EIO))
    assert error.value.errno == errno.EIO
    assert isinstance(error.value, UncertainError) == (call == "sync_folder")
    assert path.read_bytes() == (b"new" if call == "sync_folder" else b"old")
    assert names(tmp_path) == ["f"]


def test_the_file_is_on_the_medium_before_its_name_is(tmp_path):
    """A rename that overtakes its data leaves an empty file after a power cut."""
    system = Dying(99)
    atomic_write(tmp_path / "f", b"new", system=system)
    assert tuple(system.calls) == CALLS


def test_an_interrupted_write_removes_its_temporary_file(tmp_path):
    """Ctrl-C in the middle of a save is no reason to leave rubbish."""

    def pieces():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "f", pieces())
    assert names(tmp_path) == []


@pytest.mark.parametrize("n", range(len(CALLS)))
def test_a_death_before_any_call_leaves_old_or_new(tmp_path, n):
    """Whatever has not happened when the process dies, the target is complete."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(Killed):
        atomic_write(path, b"new", system=Dying(n))
    assert path.read_bytes() == (b"new" if n > CALLS.index("replace") else b"old")
    sweep(tmp_path)
    assert names(tmp_path) == ["f"]


def test_a_real_sigkill_before_any_call_leaves_old_or_new(tmp_path):
    """The same with the kernel's own kill, in forked processes."""
    count = len(CALLS) + 1  # the data comes in two pieces
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, str(count)],
        cwd=Path(__file__).parent.parent,  # the script imports tests.support
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:-1] == [f"{n} 9" for n in range(count)]
    for n in range(count):
        old_or_new = b"new" if n == count - 1 else b"old"
        assert (tmp_path / str(n) / "f").read_bytes() == old_or_new
        sweep(tmp_path / str(n))
        assert names(tmp_path / str(n)) == ["f"]


def test_a_file_size_limit_leaves_the_old_file(tmp_path):
    """The kernel's own refusal in the middle of a write, as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == [
        "1000 written", f"1001 {errno.EFBIG}", f"5000000 {errno.EFBIG}",
    ]  # fmt: skip
    assert (tmp_path / "f").read_bytes() == b"x" * 1000
    assert names(tmp_path) == ["f"]


def test_a_link_at_the_temporary_name_is_refused(tmp_path, monkeypatch):
    """A planted link must not make a training run write into somebody's file."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 16)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".f.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        atomic_write(tmp_path / "f", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "f").exists()


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    """The file it pointed to stays as it was."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "f").symlink_to(victim)
    atomic_write(tmp_path / "f", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "f").is_symlink()


def test_sweeping_removes_orphans_and_nothing_else(tmp_path):
    """A user's own hidden or temporary files are not ours to remove."""
    letters = "0123456789abcdef"
    kept = [
        ".hidden",
        "f.tmp",
        f"f.{letters}.tmp",
        f".f.{letters[:-1]}.tmp",
        f".f.{letters}.tmp.bak",
    ]
    for name in [*kept, f".f.{letters}.tmp", f".step-1.npz.{letters}.tmp"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".folder.{letters}.tmp").mkdir()
    (tmp_path / f".link.{letters}.tmp").symlink_to(tmp_path / "f.tmp")
    assert [path.name for path in sweep(tmp_path)] == [
        f".f.{letters}.tmp", f".link.{letters}.tmp", f".step-1.npz.{letters}.tmp",
    ]  # fmt: skip
    assert names(tmp_path) == sorted([*kept, f".folder.{letters}.tmp"])
    assert sweep(tmp_path / "none") == []


def test_reading_refuses_what_is_no_regular_file(tmp_path):
    """A named pipe would be waited for without end, a device read without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("pipe", "link", ".", "none"):
        with pytest.raises(OSError, match=name if name != "." else "not a regular file"):
            read_file(tmp_path / name)


@given(json_values)
def test_json_text_is_json_for_every_parser(value):
    """NaN is no JSON: one such loss would break jq, browsers and dashboards for the whole line."""

    def refuse(constant):
        raise AssertionError(constant)

    again = json.loads(utf8(json_text(value)), parse_constant=refuse)
    assert json_text(again) == json_text(value)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EDQUOT, "free some disk space"),
        (errno.EACCES, "get write permission"),
        (errno.EROFS, "get write permission"),
        (errno.EIO, "check the disk"),
    ],
)
def test_every_write_error_says_what_to_do(tmp_path, number, remedy):
    """The user can act on it without knowing what errno 122 is."""
    error = write_error("the report", tmp_path, OSError(number, os.strerror(number)))
    assert remedy in str(error)
    assert error.exit_code == 4
