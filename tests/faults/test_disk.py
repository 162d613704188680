"""A checkpoint on a bad disk: full at any byte, cut off at any call, damaged in any way."""

from __future__ import annotations

import errno
import os
import random
import resource
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from mlxfn.checkpoint.codec import encode, snapshot
from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.errors import RunDirError
from mlxfn.files import SYSTEM, System
from tests.faults.fuzz import fuzz, mutate
from tests.support.powercut import PowerCut
from tests.support.states import same_state, small_state

KINDS = ["EFBIG", "ENOSPC"]
TEMPLATE = small_state(0)
OLD, NEW = encode(snapshot(small_state(10)), {}), encode(snapshot(small_state(20)), {})


class Full(System):
    """A disk with room for so many bytes; like a real one it first takes what it can."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = super().write(fd, data[: self.room])
        self.room -= done
        return done


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def at_most(size: int):
    """Let the kernel refuse files of more bytes, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield SYSTEM
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(folder: Path, system: System) -> None:
    """Save the new state, keeping no other."""
    store = CheckpointStore(folder, keep_last_n=1, system=system)
    store.save(small_state(20))
    store.close()


@pytest.mark.parametrize("room_for", [at_most, lambda size: nullcontext(Full(size))], ids=KINDS)
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_checkpoint_alone(tmp_path, room_for):
    """Half a checkpoint must neither be published nor lie about."""
    folder = tmp_path / "checkpoints"
    with CheckpointStore(folder, keep_last_n=1) as store:
        store.save(small_state(10))
    for size in range(len(NEW)):
        with (
            room_for(size) as system,
            pytest.raises(RunDirError, match="could not be written"),
        ):
            save(folder, system)
        assert contents(folder) == {"step-00000010.npz": OLD}, size
    with room_for(len(NEW)) as system:
        save(folder, system)
    assert contents(folder) == {"step-00000020.npz": NEW}


class Everything(random.Random):
    """Draws that all of the unsynced is kept."""

    def random(self):
        """Return a number below every chance."""
        return 0.0

    def choice(self, seq):
        """Return the most of what there is to choose from."""
        return max(seq)


def test_no_acknowledged_checkpoint_is_lost_in_a_power_cut(tmp_path):
    """Cut at every call, with everything unsynced gone or any part of it kept."""
    folder, rng = tmp_path / "checkpoints", random.Random(0)
    with CheckpointStore(folder, keep_last_n=1) as store:
        store.save(small_state(10))
    disk, acknowledged = PowerCut(folder), {0: 10}
    store = CheckpointStore(folder, keep_last_n=1, system=disk)
    for step in (20, 30, 40):
        store.save(small_state(step, best=20))
        store.flush()
        acknowledged[len(disk.calls)] = step
    store.close()
    for count in range(len(disk.calls) + 1):
        promised = max(step for calls, step in acknowledged.items() if calls <= count)
        for draw in (None, Everything(), *[rng] * 20):
            after = tmp_path / f"after-{count}"
            after.mkdir(exist_ok=True)
            for path in after.iterdir():
                path.unlink()
            for name, data in disk.after(count, draw).items():
                (after / name).write_bytes(data)
            with CheckpointStore(after, keep_last_n=1) as again:
                found = again.latest(TEMPLATE)
                assert found is not None
                step = found.state.train.step.item()
                assert step >= promised
                assert again.damaged == ()
                assert same_state(found.state, small_state(step, best=20 if step > 10 else None))
                assert step < 20 or again.load(20, TEMPLATE)


def test_the_power_cut_would_find_a_missing_sync(tmp_path):
    """The simulator itself: without the sync of the file, data is lost and this is seen."""

    class Careless(PowerCut):
        def sync(self, fd: int) -> None:
            pass

    folder = tmp_path / "checkpoints"
    with CheckpointStore(folder, keep_last_n=1) as store:
        store.save(small_state(10))
    disk = Careless(folder)
    with CheckpointStore(folder, keep_last_n=1, system=disk) as store:
        store.save(small_state(20))
    assert disk.after(len(disk.calls), None)["step-00000020.npz"] == b""


def test_ten_thousand_mutations_are_named_and_the_one_before_is_used(tmp_path):
    """Whatever happens to the newest file, the run goes on from the one before it."""
    (tmp_path / "step-00000010.npz").write_bytes(OLD)
    newest, rng = tmp_path / "step-00000020.npz", random.Random(1)
    with CheckpointStore(tmp_path, keep_last_n=9) as store:
        for _ in range(10_000):
            data = mutate(NEW, rng)
            if data == NEW:
                continue
            newest.write_bytes(data)
            assert store.latest(TEMPLATE).path.name == "step-00000010.npz"
            assert [path for path, _ in store.damaged] == [newest]


def test_the_decoder_answers_anything_with_its_own_error():
    """20,000 files, most of them under a right digest; a million in the soak."""
    tally = fuzz(20_000, seed=2)
    assert tally["refused"] + tally["the same"] == 20_000
    assert tally["refused behind the digest"] > 1_000


def test_what_a_checkpoint_refers_to_is_safe_before_it_is(tmp_path):
    """The log is synced first; where that fails, no checkpoint claims a length of it."""
    seen: list[list[Path]] = []
    with CheckpointStore(tmp_path / "c", keep_last_n=1) as store:
        store.write(store.take(small_state(1)), first=lambda: seen.append(list(tmp_path.iterdir())))
    assert seen == [[]]

    def broken() -> None:
        raise RunDirError("the log could not be synced")

    store = CheckpointStore(tmp_path / "c", keep_last_n=1)
    store.write(store.take(small_state(2)), first=broken)
    with pytest.raises(RunDirError, match="the log"):
        store.close()
    assert list(contents(tmp_path / "c")) == ["step-00000001.npz"]


def test_the_best_checkpoint_is_written_again_before_any_later_one(tmp_path):
    """Otherwise a later one names a best that is nowhere, and the run cannot be exported."""

    class Once(System):
        armed = True

        def create(self, path: Path) -> int:
            if self.armed:
                self.armed = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().create(path)

    store = CheckpointStore(tmp_path, keep_last_n=1, system=Once())
    store.save(small_state(5, best=5))
    with pytest.raises(RunDirError):
        store.flush()
    store.save(small_state(6, best=5))
    store.close()
    assert sorted(contents(tmp_path)) == ["step-00000005.npz", "step-00000006.npz"]
    assert same_state(store.load(5, TEMPLATE).state, small_state(5, best=5))
