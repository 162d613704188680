"""Several processes that tokenize: the bytes of one, and nothing left behind whatever ends them."""

from __future__ import annotations

import datetime as dt
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from mlxfn.data import prepare, workers
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.prepare import encode_splits
from mlxfn.data.progress import listening
from mlxfn.data.record import Record
from mlxfn.data.records import read_records
from mlxfn.data.rows import outcomes
from mlxfn.data.tally import Tally
from mlxfn.data.workers import OtherTokenizerError, Pool, encoded
from mlxfn.errors import DataError
from tests.data.helpers import assistant, user, write_jsonl
from tests.support.cli import mlxfn, on_terminal, plain
from tests.support.models import write_model
from tests.support.tokenizers import chatml, llama, wrapped

OPTIONS = EncodeOptions(max_seq_length=40)


def chats(count):
    return [
        {"messages": [user(f"{i} plus {i}?"), assistant(f"{2 * i} " * (i % 30))]}
        for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    """Two files of other formats, more than a few chunks together, with rows that are dropped."""
    write_jsonl(tmp_path / "rows" / "train-1.jsonl", chats(1300))
    texts = [{"text": f"row {i} " * (i % 9)} for i in range(700)]
    write_jsonl(tmp_path / "rows" / "train-2.jsonl", texts)
    return tmp_path / "rows"


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    seen = []

    class Watched(workers.Worker):
        def __init__(self, about):
            super().__init__(about)
            seen.append(self._process)

    monkeypatch.setattr(workers, "Worker", Watched)
    return seen


def bytes_of(cache):
    (store,) = (path.parent for path in cache.glob("*/manifest.json"))
    return {path.name: path.read_bytes() for path in store.iterdir()}


def test_two_processes_build_the_store_of_one_byte_for_byte(tmp_path, folder, started):
    """Rows in order, formats by file, dropped rows counted: the number of processes is no setting."""
    stores = []
    for count in (1, 2):
        cache = tmp_path / f"cache {count}"
        split = encode_splits(folder, wrapped("chatml"), OPTIONS, cache=cache, workers=count)
        assert split["train"].report.dropped_no_target
        stores.append(bytes_of(cache))
    assert stores[0] == stores[1]
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_wrong_row_is_the_error_of_one_process(tmp_path, folder, started):
    """File, line and what is expected; also for the first row of a file, which decides its format."""
    for extra in ({"text": 3}, {"body": "no format"}):
        name = "train-3.jsonl" if "body" in extra else "train-2.jsonl"
        with (folder / name).open("a") as file:
            file.write(f"{extra}\n".replace("'", '"'))
        said = []
        for count in (1, 2):
            with pytest.raises(DataError) as caught:
                encode_splits(
                    folder, wrapped("chatml"), OPTIONS, cache=tmp_path / "cache", workers=count
                )
            said.append(str(caught.value))
        assert said[0] == said[1]
        (folder / name).write_text('{"text": "a"}\n')
    assert not list((tmp_path / "cache").glob("[!.]*/manifest.json"))
    assert not list((tmp_path / "cache").glob(".*.tmp"))
    assert all(process.poll() is not None for process in started)


def test_rows_that_are_no_json_are_tokenized_here(started):
    """Tables hold dates; a row of them must neither fail nor lose its place."""
    rows = [Record({"text": f"row {i}", "day": i}, "a", i + 1) for i in range(9)]
    rows[4] = Record({"text": "row 4", "day": dt.date(2026, 1, 1)}, "a", 5)
    tallies = Tally("train"), Tally("train")
    ours = list(encoded(rows, wrapped("plain"), OPTIONS, tallies[0], 2))
    theirs = list(outcomes(rows, wrapped("plain"), OPTIONS, tallies[1]))
    assert [o.where for o in ours] == [o.where for o in theirs]
    assert [o.row.tokens.tolist() for o in ours] == [o.row.tokens.tolist() for o in theirs]
    assert tallies[0].count(()) == tallies[1].count(())
    assert len(started) == 2


def test_a_tokenizer_that_does_not_survive_a_folder_stays_here(monkeypatch, started):
    """One that is changed in memory would be another one in the other process."""
    tokenizer, save = chatml(), PreTrainedTokenizerFast.save_pretrained
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda _, to: save(llama(), to))
    with pytest.raises(OtherTokenizerError), Pool(tokenizer, OPTIONS, 1):
        pass
    rows = [Record({"text": "a b"}, "a", 1)]
    assert list(encoded(rows, tokenizer, OPTIONS, Tally("train"), 2))
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize("how", ["a worker is killed", "Ctrl-C"])
def test_whatever_ends_a_build_leaves_no_store_and_no_process(tmp_path, folder, monkeypatch, started, how):  # fmt: skip
    """A process that lives on would hold a gigabyte for ever."""

    def ending(paths):
        for number, record in enumerate(read_records(paths)):
            if number == 1000 and how == "Ctrl-C":
                raise KeyboardInterrupt
            if number == 1000:
                started[0].send_signal(signal.SIGKILL)
            yield record

    monkeypatch.setattr(prepare.Reader, "records", lambda self: ending(self.files))
    cache = tmp_path / "cache"
    expected = KeyboardInterrupt if how == "Ctrl-C" else DataError
    with pytest.raises(expected) as caught:
        encode_splits(folder, wrapped("chatml"), OPTIONS, cache=cache, workers=2)
    if how != "Ctrl-C":
        assert "has ended" in str(caught.value)
        assert "exit code -9" in str(caught.value)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    assert not list(cache.glob("*/manifest.json"))
    assert not list(cache.glob(".*.tmp"))


KILLED = """
import itertools, os, signal, sys
from mlxfn.data import workers
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.record import Record
from mlxfn.data.tally import Tally
from tests.support.cli import mlxfn, on_terminal, plain
from tests.support.models import write_model
from tests.support.tokenizers import wrapped
class Watched(workers.Worker):
    def __init__(self, about):
        super().__init__(about)
        print(self._process.pid, flush=True)
workers.Worker = Watched
rows = (Record({"text": "a b"}, "a", line) for line in itertools.count(1))
for number, _ in enumerate(workers.encoded(rows, wrapped("plain"), EncodeOptions(), Tally("t"), 2)):
    if number == 3000:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
        return stat.rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="processes are looked up in /proc")
def test_workers_end_with_a_process_that_is_killed():
    """Nobody tells them: their input ends."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pids = list(map(int, done.stdout.split()))
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))


@pytest.mark.parametrize(("rows", "ids", "most"), [(9000, 2, 5 * 512), (300, 30_000, 60)])
def test_the_reader_does_not_run_ahead(rows, ids, most):
    """It is faster than those who tokenize: a data set must not pile up between them.

    At most two chunks for each process and one in the making: 512 rows or a megabyte each.
    """
    read = 0

    def source():
        nonlocal read
        for line in range(1, rows + 1):
            read += 1
            yield Record({"input_ids": [99] * ids}, "a", line)

    made = encoded(source(), wrapped("plain"), OPTIONS, Tally("train"), 2)
    ahead = [read - done for done, _ in enumerate(made)]
    assert len(ahead) == rows
    assert max(ahead) <= most + 1


def test_progress_is_told_while_rows_go_by(tmp_path, folder, monkeypatch):
    """An hour of silence looks like a program that hangs."""
    monkeypatch.setattr("mlxfn.data.progress._EVERY", 0.0)
    said = []
    with listening(said.append):
        encode_splits(folder, wrapped("chatml"), OPTIONS, cache=tmp_path / "cache")
    assert [p.rows for p in said] == [*range(1, 2001), 2000]
    assert [p.ended for p in said] == [False] * 2000 + [True]
    assert {p.name for p in said} == {"train"}


def test_a_terminal_shows_how_far_tokenizing_is(tmp_path):
    """After a second, and never in a pipe or in what is asked for as JSON."""
    model = write_model(tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", chats(12_000))
    words = ("data", "--model", model, "--data", tmp_path / "rows.jsonl", "--json")
    shown = plain(on_terminal(*words, cwd=tmp_path).out)
    assert "tokenizing train: " in shown
    assert re.search(r" rows, [\d,]+ a second, \S+( s)? left", shown)
    piped = mlxfn(*words, cwd=tmp_path)
    assert json.loads(piped.out)["splits"]
    assert "tokenizing" not in piped.out + piped.err


def test_only_large_files_are_worth_processes(tmp_path, monkeypatch):
    """A second to start each: a small file is done by then."""
    asked = []

    def encode(records, tokenizer, options, tally, count):
        asked.append(count)
        return outcomes(records, tokenizer, options, tally)

    monkeypatch.setattr(prepare, "encoded", encode)
    monkeypatch.setattr(prepare, "cores", lambda: 4)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}])
    encode_splits(path, wrapped("plain"), cache=tmp_path / "c", workers="auto")
    with path.open("a") as file:
        file.truncate(0)
        file.write(
            '{"text": "a b"}\n' + "{}\n".format(" " * 1000) * (prepare.WORTH_WORKERS // 1000)
        )
    encode_splits(path, wrapped("plain"), cache=tmp_path / "c", workers="auto")
    assert asked == [1, 4]
