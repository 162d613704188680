"""Stops at the moments that random ones rarely meet, and everything a terminal can do to a run."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

import mlxfn as mf
from mlxfn import configfile, run, signals
from mlxfn.data.cursor import Loader
from mlxfn.events import Eval, Save, Step
from mlxfn.signals import StoppedError, StopRequest
from mlxfn.sinks.jsonl import read_events
from tests.support.cli import PROGRAM, environment
from tests.support.runs import Collect, small_config

PATIENCE_S = 120


class Signal(Collect):
    """A sink that raises a signal at the first event that is asked for."""

    def __init__(self, wanted, number=signal.SIGTERM):
        super().__init__()
        self.wanted, self.number, self.armed = wanted, number, True

    def write(self, event):
        super().write(event)
        if self.armed and self.wanted(event):
            self.armed = False
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return mf.train(small_config(folder)), folder


def same(folder, whole):
    """Whether a run ended like one that nothing stopped."""
    files = ("adapters/adapters.safetensors", "best/adapters.safetensors")
    told = [
        [(e["event"], e["update"], e.get("loss")) for e in read_events(f / "events.jsonl")
         if e["event"] not in {"start", "save"}]
        for f in (folder, whole[1])
    ]  # fmt: skip
    return told[0] == told[1] and all(
        (folder / name).read_bytes() == (whole[1] / name).read_bytes() for name in files
    )


def raising(monkeypatch, owner, name, number=signal.SIGTERM, *, at=1):
    """Let a function raise a signal each time it is called for the ``at``-th time, then go on."""
    real, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == at:
            signal.raise_signal(number)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


@pytest.mark.parametrize("at", [1, 5, 9, 13])
def test_a_stop_within_an_evaluation_does_not_wait_for_its_end(whole, tmp_path, monkeypatch, at):
    """An evaluation can take minutes; it is given up, and done by the resumed run instead."""
    config = small_config(tmp_path)
    batches = -(-7 // 2)
    assert len(range(0, at - 1, batches)) * batches == at - 1  # the first batch of an evaluation
    calls = raising(monkeypatch, Loader, "batch", at=10**9)
    real = Loader.epoch

    def epoch(self, epoch=0):
        for number, batch in enumerate(real(self, epoch)):
            seen.append(number)
            if len(seen) == at:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    seen = []
    monkeypatch.setattr(Loader, "epoch", epoch)
    if at == 1:  # the untrained model: nothing to save yet
        with pytest.raises(StoppedError) as error:
            mf.train(config)
        assert error.value.exit_code == 143
    else:
        assert mf.train(config).exit_code == 143
    assert len(seen) <= at + 1
    assert calls
    monkeypatch.undo()
    result = mf.train(config, mode="resume")
    assert result.history == whole[0].history
    assert same(tmp_path, whole)


def test_a_stop_within_the_evaluation_that_ends_the_run_does_not_end_it(tmp_path, monkeypatch):
    """Early stopping has not spoken then: the resumed run does the evaluation, and it speaks."""
    never = {"monitor__early_stopping_patience": 2, "monitor__min_delta": 9.0}
    whole = mf.train(small_config(tmp_path / "whole", **never))
    assert (whole.reason, whole.steps) == ("early_stopping", 9)  # evaluated after 3, 6 and 9
    config = small_config(tmp_path / "run", **never)
    real, calls = Loader.epoch, []

    def epoch(self, epoch=0):
        for number, batch in enumerate(real(self, epoch)):
            calls.append(number)
            if calls.count(0) == 4 and number == 2:  # one of the untrained model, then three
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Loader, "epoch", epoch)
    stopped = mf.train(config)
    assert (stopped.reason, stopped.steps) == ("SIGTERM", 9)
    monkeypatch.undo()
    ended = mf.train(config, mode="resume")
    assert (ended.reason, ended.history) == ("early_stopping", whole.history)
    assert same(tmp_path / "run", (whole, tmp_path / "whole"))
    again = mf.train(config, mode="resume")  # of a run that is over: nothing is trained
    assert (again.reason, again.history) == ("early_stopping", whole.history)


@pytest.mark.parametrize("mode", ["new", "resume"])
def test_a_stop_while_loading_ends_the_run_at_once_and_loses_nothing(
    whole, tmp_path, monkeypatch, mode
):
    """Loading and tokenizing take minutes for large models; nothing of it is worth saving."""
    config = small_config(tmp_path)
    if mode == "resume":
        stop = Signal(lambda e: isinstance(e, Step) and e.update == 5)
        assert mf.train(config, sinks=[stop]).exit_code == 143
    loaded = raising(monkeypatch, run, "assemble", signal.SIGINT)
    with pytest.raises(StoppedError, match="--resume") as error:
        mf.train(config, mode=mode)
    assert (error.value.exit_code, len(loaded)) == (130, 1)
    monkeypatch.undo()
    assert mf.train(config, mode="resume").history == whole[0].history
    assert same(tmp_path, whole)


@pytest.mark.parametrize("wanted", [Save, Eval], ids=lambda kind: kind.__name__)
def test_a_stop_while_an_event_is_told_is_taken_after_it(whole, tmp_path, wanted):
    """In the middle of saving, for example: the save is finished, and there is one only."""
    stop = Signal(lambda e: isinstance(e, wanted) and e.update >= 3, signal.SIGHUP)
    assert mf.train(small_config(tmp_path), sinks=[stop]).exit_code == 129
    assert mf.train(small_config(tmp_path), mode="resume").history == whole[0].history
    assert same(tmp_path, whole)


def test_a_stop_in_the_last_answers_is_a_stop_and_the_resumed_run_exports(tmp_path, monkeypatch):
    """Sample answers come after the last save: giving them up costs nothing."""
    from mlxfn import ending

    config = small_config(tmp_path, eval__sample_prompts=["1 plus 1?"], eval__sample_tokens=2)
    raising(monkeypatch, ending, "generate", at=2)
    assert mf.train(config).exit_code == 143
    assert not (tmp_path / "adapters").exists()
    monkeypatch.undo()
    result = mf.train(config, mode="resume")
    assert (result.exit_code, result.reason) == (0, "finished")
    assert (tmp_path / "adapters/adapters.safetensors").exists()


@pytest.mark.parametrize(
    ("second", "moment_s"), [(signal.SIGINT, 600.0), (signal.SIGTERM, 600.0), (signal.SIGHUP, -1.0)]
)
def test_two_signals_in_one_moment_are_one_wish(monkeypatch, second, moment_s):
    """Launchers pass on the Ctrl-C that the terminal has sent to everybody; SIGHUP comes twice."""
    monkeypatch.setattr(signals, "_ONE_WISH_S", moment_s)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(second)
    assert (stop.exit_code, stop.name) == (130, "SIGINT")


def test_a_second_signal_ends_the_process_at_once():
    """Somebody does not want to wait for the end of an update that takes minutes."""
    program = (
        "import signal, time\n"
        "from mlxfn import signals\n"
        "signals._ONE_WISH_S = -1\n"
        "with signals.StopRequest(lambda *said: print(*said, flush=True)):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "SIGTERM False\nSIGINT True\n")


class Poll(ctypes.Structure):
    """What the system's ``poll`` is asked."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def test_a_signal_is_heard_while_the_main_thread_waits_for_mlx():
    """Python's own handlers run when an update is done, which can take minutes."""
    ready, end = os.pipe()
    with StopRequest(lambda name, _: os.write(end, name.encode())) as stop:
        sender = threading.Thread(
            target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        )
        sender.start()
        # As MLX does, this waits without coming back to Python: only the answer ends it.
        waited = Poll(ready, select.POLLIN, 0)
        assert ctypes.CDLL(None).poll(ctypes.byref(waited), 1, 1000 * PATIENCE_S) == 1
        assert os.read(ready, 64) == b"SIGINT"
        sender.join()
    assert stop.exit_code == 130
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_listener_that_is_there_already_keeps_its_signals():
    """A notebook runs an event loop, which listens in the same way; the stop works without."""
    ready, end = os.pipe()
    os.set_blocking(end, False)
    before = signal.set_wakeup_fd(end)
    heard = []
    try:
        with StopRequest(lambda *said: heard.append(said)) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert (stop.name, heard) == ("SIGTERM", [("SIGTERM", False)])
        assert os.read(ready, 64) == bytes([signal.SIGTERM])
    finally:
        assert signal.set_wakeup_fd(before) == end


def test_an_ignored_hangup_stays_ignored():
    """``nohup mlxfn train`` must outlive its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_clocks_that_jump_change_nothing(whole, tmp_path, monkeypatch):
    """A laptop sleeps, its clock is set: durations come from the monotonic one only."""
    real, seen = time.time, Collect()
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() - 86400 * next(jumps))
    result = mf.train(small_config(tmp_path), sinks=[seen])
    monkeypatch.undo()
    assert result.history == whole[0].history
    assert 0 < result.total_time_s < 3600
    assert all(0 < event["step_time_s"] < 3600 for event in seen.of("step"))
    assert all(0 < event["time_s"] < 3600 for event in seen.of("eval"))


# The installed command


def written(folder: Path) -> Path:
    """Write the configuration of a run into a folder."""
    path = folder / "run.toml"
    changes = {"train__num_epochs": 6, "eval__eval_steps": 6}
    path.write_text(tomli_w.dumps(configfile.to_nested(small_config(folder / "run", **changes))))
    return path


def wait_until(condition: Callable[[], bool], said: Path) -> None:
    """Wait for something that another process does; show what it said if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, said.read_text()
        select.select([], [], [], 0.01)


def updates(folder: Path) -> int:
    """Return the last update in a log."""
    return max((e["update"] for e in read_events(folder / "run/events.jsonl")), default=0)


def is_free(lock: Path) -> bool:
    """Whether no process holds a run directory."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def test_a_terminal_that_is_closed_stops_the_run_which_saves(tmp_path):
    """Every write to it fails then; the run saves and exits as SIGHUP says."""
    config = written(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PROGRAM[0], [*PROGRAM, "train", str(config)], environment(TERM="xterm"))  # noqa: S606
    while updates(tmp_path) < 3:
        os.read(terminal, 65536)  # as a terminal does; OSError when the run has ended
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    last = max((tmp_path / "run/checkpoints").iterdir()).name
    assert last == f"step-{updates(tmp_path):08d}.npz"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_message_that_cannot_be_written_does_not_change_the_exit_code():
    """The terminal it is for may be gone; the exit code of the stop has to be right all the same."""
    program = "from mlxfn_cli import render; render.note('saved'); raise SystemExit(129)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], stderr=full, check=False)
    assert done.returncode == 129


def test_a_run_outlives_its_parent_and_the_pipe_to_it(tmp_path):
    """A notebook that crashes takes nothing with it: no reader, no parent, no signal."""
    line = " ".join([*PROGRAM, "train", str(written(tmp_path))])
    said, out = tmp_path / "stderr.txt", subprocess.PIPE
    with (
        said.open("w") as err,
        subprocess.Popen(
            ["sh", "-c", f"{line} & wait"], env=environment(), stdout=out, stderr=err
        ) as parent,
    ):
        wait_until(lambda: updates(tmp_path) >= 2, said)
        parent.kill()
    wait_until(lambda: is_free(tmp_path / "run/run.lock"), said)
    *_, end = read_events(tmp_path / "run/events.jsonl")
    assert end["exit_code"] == 0, said.read_text()
    assert (tmp_path / "run/adapters/adapters.safetensors").exists()


def test_ctrl_c_while_mlx_compiles_is_a_stop_and_no_crash(tmp_path):
    """The terminal sends it to the compiler too, which dies, and MLX reports that as an error."""
    tools = tmp_path / "bin"
    tools.mkdir()
    compiler = tools / "g++"
    # MLX asks for the version first, and does not compile at all without an answer. The trial is
    # our own, before the run.
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\ncase $* in *trial*) exit 1;; esac\n"
        "kill -INT 0\nexec sleep 600\n"
    )
    compiler.chmod(0o755)
    place = {"PATH": f"{tools}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cold")}
    done = subprocess.run(
        [*PROGRAM, "train", written(tmp_path)],
        env={k: v for k, v in environment(**place).items() if k != "MLX_DISABLE_COMPILE"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "--resume" in done.stderr
    assert "unexpected" not in done.stderr
