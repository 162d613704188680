"""The store: nothing acknowledged is lost, nothing half-written is seen, and the best one stays."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.errors import CheckpointError, RunDirError
from mlxfn.files import System
from tests.support.faults import CALLS, Dying, Failing, Killed
from tests.support.states import same_state, small_state

TEMPLATE = small_state(0)


def filled(folder: Path, *steps: int, best: int | None = None, keep: int = 100) -> None:
    """Save states of these steps."""
    with CheckpointStore(folder, keep_last_n=keep) as store:
        for step in steps:
            store.save(small_state(step, best=best))


def present(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, at: int = 200) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_was_saved_is_found(tmp_path):
    """The straight way: save, come back, go on."""
    folder = tmp_path / "run" / "checkpoints"
    with CheckpointStore(folder, keep_last_n=3) as store:
        path = store.save(small_state(5), meta={"config": {"betas": (0.9, 0.999)}})
        found = store.latest(TEMPLATE)
    assert path == folder / "step-00000005.npz"
    assert present(folder) == [path.name]
    assert found is not None
    assert found.path == path
    assert same_state(found.state, small_state(5))
    assert found.manifest["meta"] == {"config": {"betas": [0.9, 0.999]}}


def test_no_folder_is_no_checkpoint(tmp_path):
    """Looking for checkpoints makes no folder, and finding none is no error."""
    with CheckpointStore(tmp_path / "none", keep_last_n=1) as store:
        assert store.latest(TEMPLATE) is None
        assert store.list() == ()
        assert store.sweep() == ()
    assert not (tmp_path / "none").exists()


def test_the_newest_is_the_one_of_the_highest_number(tmp_path):
    """File times lie after a copy or a restored backup."""
    filled(tmp_path, 30, 100, 20)
    os.utime(tmp_path / "step-00000020.npz", (2**31, 2**31))
    (tmp_path / "step-00000200.npz.bak").write_bytes(b"")
    (tmp_path / "step-200.npz").write_bytes(b"")
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        assert store.latest(TEMPLATE).state.train.step.item() == 100
        assert store.load(30, TEMPLATE).state.train.step.item() == 30
        assert store.damaged == ()


def test_numbers_beyond_eight_digits_are_found(tmp_path):
    """The file's name grows; it is not cut."""
    filled(tmp_path, 99_999_999, 100_000_000)
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        assert store.latest(TEMPLATE).path.name == "step-100000000.npz"


def test_damaged_checkpoints_are_named_and_skipped(tmp_path):
    """A partial file taken for the latest state has cost others their runs."""
    filled(tmp_path, 10, 20, 30, 40)
    flip(tmp_path / "step-00000030.npz")
    os.truncate(tmp_path / "step-00000040.npz", 100)
    os.mkfifo(tmp_path / "step-00000050.npz")
    (tmp_path / "step-00000060.npz").symlink_to(tmp_path / "step-00000010.npz")
    (tmp_path / "step-00000070.npz").mkdir()
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        assert store.latest(TEMPLATE).state.train.step.item() == 20
        assert [damaged.path.name[5:13] for damaged in store.damaged] == [
            "00000070", "00000060", "00000050", "00000040", "00000030",
        ]  # fmt: skip
        assert "checksum" in store.damaged[-1].reason


def test_when_all_are_damaged_there_is_none_and_all_are_named(tmp_path):
    """The run starts over, and says why."""
    filled(tmp_path, 10)
    flip(tmp_path / "step-00000010.npz")
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        assert store.latest(TEMPLATE) is None
        assert len(store.damaged) == 1
        with pytest.raises(CheckpointError, match=r"step-00000010\.npz"):
            store.load(10, TEMPLATE)


def test_another_configuration_is_refused_and_no_older_one_taken_instead(tmp_path):
    """An old checkpoint that happens to fit would silently throw training away."""
    filled(tmp_path, 10, 20)
    other = small_state(0)
    other.train.params["layers"]["0"]["lora_a"] = other.train.key
    with (
        CheckpointStore(tmp_path, keep_last_n=1) as store,
        pytest.raises(CheckpointError, match="another configuration") as error,
    ):
        store.latest(other)
    assert error.value.where == tmp_path / "step-00000020.npz"


def test_the_newest_n_and_the_best_stay(tmp_path):
    """The best checkpoint must survive a hundred later ones, and the disk must not fill up."""
    with CheckpointStore(tmp_path, keep_last_n=2) as store:
        for step in range(1, 10):
            store.save(small_state(step, best=3 if step >= 3 else None))
        store.flush()
        assert [info.step for info in store.list()] == [3, 8, 9]
        assert [info.step for info in store.list() if info.best] == [3]
        assert store.load(3, TEMPLATE).state.train.step.item() == 3
        store.save(small_state(10, best=10))
    assert [name[5:13] for name in present(tmp_path)] == ["00000009", "00000010"]


def test_a_damaged_checkpoint_pushes_no_good_one_out(tmp_path):
    """Resumed from 10 with damaged ones after it, the first save must not delete 10."""
    filled(tmp_path, 10, 20, 30, 40)
    for step in (20, 30, 40):
        flip(tmp_path / f"step-000000{step}.npz")
    with CheckpointStore(tmp_path, keep_last_n=2) as store:
        assert store.latest(TEMPLATE).state.train.step.item() == 10
        store.save(small_state(15))
    assert {"step-00000010.npz", "step-00000015.npz"} <= set(present(tmp_path))
    with CheckpointStore(tmp_path, keep_last_n=2) as store:
        assert store.latest(TEMPLATE).state.train.step.item() == 15
        store.save(small_state(20))
        store.save(small_state(25))
    # written anew, 20 is good again and counts
    good = [f"step-000000{step}.npz" for step in (20, 25)]
    assert present(tmp_path) == [*good, "step-00000030.npz", "step-00000040.npz"]


def test_damaged_checkpoints_in_between_do_not_count(tmp_path):
    """Of the two that are kept, both can be resumed from."""
    filled(tmp_path, 10, 20, 30)
    for step in (20, 30):
        flip(tmp_path / f"step-000000{step}.npz")
    with CheckpointStore(tmp_path, keep_last_n=2) as store:
        assert store.latest(TEMPLATE).state.train.step.item() == 10
        store.save(small_state(40))
    assert {"step-00000010.npz", "step-00000040.npz"} <= set(present(tmp_path))


def test_a_save_removes_nothing_of_later_updates(tmp_path):
    """They belong to another past of the run, which only `drop_after` ends."""
    filled(tmp_path, 10, 20, 30)
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        store.save(small_state(15))
    assert [name[5:13] for name in present(tmp_path)] == ["00000015", "00000020", "00000030"]


def test_going_back_drops_what_came_after(tmp_path):
    """After a rollback the abandoned future must not be the newest checkpoint."""
    filled(tmp_path, 10, 20, 30)
    with CheckpointStore(tmp_path, keep_last_n=3) as store:
        assert [path.name[5:13] for path in store.drop_after(10)] == ["00000030", "00000020"]
        assert store.latest(TEMPLATE).state.train.step.item() == 10


def test_a_save_returns_before_the_file_is_written(tmp_path):
    """The loop pauses for the copy only."""
    gate = threading.Event()

    class Slow(System):
        def create(self, path):
            assert gate.wait(60)
            return super().create(path)

    with CheckpointStore(tmp_path, keep_last_n=1, system=Slow()) as store:
        path = store.save(small_state(1))
        store.poll()
        assert not path.exists()
        gate.set()
        store.flush()
        assert path.exists()


def test_at_most_one_write_is_under_way(tmp_path):
    """Two copies of a large state in host memory at once is one too many."""
    active, most = [0], [0]

    class Counting(System):
        def create(self, path):
            active[0] += 1
            most[0] = max(most[0], active[0])
            return super().create(path)

        def replace(self, source, target):
            super().replace(source, target)
            active[0] -= 1

    with CheckpointStore(tmp_path, keep_last_n=9, system=Counting()) as store:
        for step in range(5):
            store.save(small_state(step))
            assert len(present(tmp_path)) >= step
    assert most == [1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", CALLS)
def test_a_failed_write_is_told_once_and_changes_nothing(tmp_path, call, number):
    """Full disk or broken cable: what was there stays, nothing is half there, and the run knows."""
    filled(tmp_path, 10, 20)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    store = CheckpointStore(tmp_path, keep_last_n=1, system=Failing(call, number))
    store.save(small_state(30, best=30))
    with pytest.raises(RunDirError, match="update 30") as error:
        store.flush()
    assert error.value.exit_code == 4
    assert os.strerror(number) in str(error.value)
    published = ["step-00000030.npz"] * (call == "sync_folder")
    assert present(tmp_path) == ["step-00000010.npz", "step-00000020.npz", *published]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())][:2] == before
    store.poll()
    store.save(small_state(30))
    store.close()
    assert present(tmp_path) == ["step-00000030.npz"]


@pytest.mark.parametrize("tell", ["poll", "save", "flush", "close"])
def test_a_write_error_surfaces_at_the_next_call(tmp_path, tell):
    """An error nobody hears of is a run without checkpoints."""
    done = threading.Event()

    class Broken(System):
        def create(self, path):
            raise OSError(errno.ENOSPC, "No space left on device")

        def unlink(self, path):
            done.set()

    store = CheckpointStore(tmp_path, keep_last_n=1, system=Broken())
    store.save(small_state(1))
    if tell == "poll":
        while store._write is not None and not store._write.done():
            threading.Event().wait(0.001)
    calls = {
        "poll": store.poll,
        "save": lambda: store.save(small_state(2)),
        "flush": store.flush,
        "close": store.close,
    }
    with pytest.raises(RunDirError, match="free some disk space"):
        calls[tell]()
    store.close()


def test_an_uncertain_write_says_that_the_file_is_complete(tmp_path):
    """Published but perhaps not durable is neither failed nor safe; the message tells them apart."""
    store = CheckpointStore(tmp_path, keep_last_n=1, system=Failing("sync_folder", errno.EIO))
    store.save(small_state(1))
    with pytest.raises(RunDirError, match="is written, but a power cut may still undo it"):
        store.close()
    assert CheckpointStore(tmp_path, keep_last_n=1).latest(TEMPLATE) is not None


@pytest.mark.parametrize("n", range(12))
def test_a_kill_at_any_point_leaves_the_old_or_the_new(tmp_path, n):
    """Die before any system call of save and clean-up: what is found next is complete."""
    filled(tmp_path, 10, 20)
    system = Dying(n)
    store = CheckpointStore(tmp_path, keep_last_n=1, system=system)
    store.save(small_state(30, best=30))
    try:
        store.close()
        killed = False
    except Killed:
        killed = True
    assert killed == (n < len(system.calls))
    after = CheckpointStore(tmp_path, keep_last_n=1)
    found = after.latest(TEMPLATE)
    replaced = "replace" in system.calls[:n]
    assert same_state(found.state, small_state(30, best=30) if replaced else small_state(20))
    assert after.damaged == ()
    after.sweep()
    assert all(name.startswith("step-") for name in present(tmp_path))


def test_a_state_that_cannot_be_written_is_refused_at_once(tmp_path):
    """A wrong value is a bug of the caller: it is raised where it happens, not later."""
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        with pytest.raises(TypeError, match=r"meta\.when"):
            store.save(small_state(1), meta={"when": object()})
        assert present(tmp_path) == []


def test_verify_reads_every_byte(tmp_path):
    """What `mlxfn checkpoints --verify` promises."""
    filled(tmp_path, 10)
    path = tmp_path / "step-00000010.npz"
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        assert store.verify(path)["step"] == 10
        flip(path, path.stat().st_size - 100)
        assert [info.step for info in store.list()] == [10]
        with pytest.raises(CheckpointError, match="checksum"):
            store.verify(path)


def test_the_best_is_listed_from_the_newest_readable_manifest(tmp_path):
    """A damaged newest checkpoint must not hide which one is the best."""
    filled(tmp_path, 10, 20, best=10)
    os.truncate(tmp_path / "step-00000020.npz", 10)
    with CheckpointStore(tmp_path, keep_last_n=1) as store:
        assert [(info.step, info.best) for info in store.list()] == [(10, True), (20, False)]
        assert store.list()[1].bytes == 10
