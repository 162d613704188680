"""The real command line in a process of its own, and the pseudo-terminal a person would see."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

PROGRAM = (sys.executable, "-m", "mlxfn_cli.main")
# Eager: what is tested here is not compilation, and a cold kernel costs a second of g++.
ENVIRONMENT = {"MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


class Done(NamedTuple):
    """What a finished command left behind."""

    code: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a command: that of the tests, without colours, and changes."""
    inherited = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    return {**inherited, **ENVIRONMENT, **changes}


def mlxfn(
    *words: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Done:
    """Run the command line to its end.

    Args:
        words: The words after ``mlxfn``.
        cwd: Where it runs.
        env: Changes to the environment.
        before: What the new process does to itself first.
    """
    done = subprocess.run(
        [*PROGRAM, *map(str, words)],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=before,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """Start the command line and return the process, its stdout and stderr as pipes."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without_privileges() -> None:
    """Take away root's right to go where the permissions say no; call it before exec."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
        for right in (dac_override, dac_read_search):
            if libc.prctl(drop_from_bounding_set, right, 0, 0, 0) != 0:
                raise OSError(errno.EPERM, "prctl")


def on_terminal(
    *words: object, cwd: Path, columns: int = 100, ctrl_c_after: str | None = None
) -> Done:
    """Run the command line on a pseudo-terminal and return everything it showed there.

    Args:
        words: The words after ``mlxfn``.
        cwd: Where it runs.
        columns: How wide the terminal is.
        ctrl_c_after: What is shown when Ctrl-C is typed.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        words_of_it = [*PROGRAM, *map(str, words)]
        os.execve(PROGRAM[0], words_of_it, environment(TERM="xterm-256color"))  # noqa: S606
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(65536):
                shown += piece
                if ctrl_c_after and ctrl_c_after in plain(shown.decode(errors="replace")):
                    os.write(terminal, b"\x03")
                    ctrl_c_after = None
        except OSError:  # Linux says EIO when the other side is closed
            pass
    _, status = os.waitpid(pid, 0)
    return Done(os.waitstatus_to_exitcode(status), shown.decode(errors="replace"), "")


def plain(shown: str) -> str:
    """Return what a terminal shows without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def interrupt_after(process: subprocess.Popen[str], word: str, number: signal.Signals) -> Done:
    """Read lines until one begins with a word, send a signal, and wait for the end."""
    out = ""
    for line in process.stdout or ():
        out += line
        if line.startswith(word):
            process.send_signal(number)
            break
    rest, err = process.communicate(timeout=120)
    return Done(process.returncode, out + rest, err)
