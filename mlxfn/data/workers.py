"""Tokenizing in several processes: the same outcomes in the same order as in one."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import attrs

from mlxfn.data.encode import EncodeOptions, Outcome
from mlxfn.data.formats import column_names, detect
from mlxfn.data.keys import tokenizer_fingerprint
from mlxfn.data.record import Record
from mlxfn.data.rows import outcomes
from mlxfn.data.tally import Tally
from mlxfn.data.worker import receive, send, unpack_outcomes
from mlxfn.errors import DataError

MOST = 8
"""Processes that ``"auto"`` starts: one process reads for all of them."""
_ROWS, _BYTES = 512, 1 << 20  # of a chunk
_WAITING = 2  # chunks for each process that are on their way
_START = "from mlxfn.data.worker import main; main()"


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Chunk(NamedTuple):
    """Rows of one file, as a message."""

    path: str
    message: bytes


class Worker:
    """One process that tokenizes.

    Args:
        about: Tokenizer and options, as JSON.
    """

    def __init__(self, about: bytes) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",  # the other cores have processes of their own
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us; a worker ends when its input does
        )
        with self._alive() as (sink, _):
            send(sink, about)

    def fingerprint(self) -> str | None:
        """Return what its tokenizer does, as one hash; it has to be asked once, first."""
        with self._alive() as (_, source):
            return json.loads(receive(source))

    def encode(self, chunk: Chunk) -> list[Outcome]:
        """Return what becomes of the rows of a chunk.

        Raises:
            DataError: A row is wrong, or the process has ended.
            RuntimeError: It has failed in a way that was not foreseen.
        """
        with self._alive() as (sink, source):
            send(sink, chunk.message)
            about = json.loads(receive(source))
            tokens, labels = receive(source), receive(source)
        if "error" in about:
            raise DataError(**about["error"])
        if "crash" in about:
            raise RuntimeError(about["crash"])
        return unpack_outcomes(about, chunk.path, tokens, labels)

    @contextlib.contextmanager
    def _alive(self) -> Generator[tuple[Any, Any]]:
        """Give both ends of the process, and say what happened if it is not there any more."""
        try:
            yield self._process.stdin, self._process.stdout
        except (EOFError, OSError, ValueError) as error:
            raise DataError(
                "a process that tokenizes has ended",
                got=f"exit code {self._process.wait()}",
                expected="it ends when all rows are tokenized",
                remedy="if memory ran out, set data.workers = 1",
            ) from error

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close both ends; no thread may be using them."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()


class Pool:
    """Processes that tokenize alike, to be used in a ``with``.

    Args:
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        options: How to encode.
        count: Processes.
    """

    def __init__(self, tokenizer: Any, options: EncodeOptions, count: int) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.count = count
        self._workers: list[Worker] = []
        self._free: queue.Queue[Worker] = queue.Queue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tokenize")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        wrapped = not callable(self.tokenizer)
        inner = self.tokenizer._tokenizer if wrapped else self.tokenizer  # noqa: SLF001 - no other way in
        expected = tokenizer_fingerprint(self.tokenizer)
        with tempfile.TemporaryDirectory(prefix="mlxfn-tokenizer-") as folder:
            inner.save_pretrained(folder)
            about = {
                "folder": folder,
                "wrapped": wrapped,
                "ends": sorted(self.tokenizer.eos_token_ids) if wrapped else [],
                "options": attrs.asdict(self.options),
            }
            for _ in range(self.count):
                self._workers.append(Worker(json.dumps(about).encode()))
            alike = [worker.fingerprint() == expected for worker in self._workers]
        if not all(alike):
            raise OtherTokenizerError
        for worker in self._workers:
            self._free.put(worker)

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()  # a thread that waits for it sees its end
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def outcomes(self, records: Iterable[Record], tally: Tally) -> Iterator[Outcome]:
        """Yield what becomes of each record, in order; few of them are in memory at a time.

        Args:
            records: The rows.
            tally: Counts the outcomes.

        Raises:
            DataError: A row is wrong, or a process has ended.
        """
        waiting: deque[Future[list[Outcome]]] = deque()
        last: Exception | None = None
        chunks = chunked(records, self.options)
        while True:
            try:
                item = next(chunks, None)
            except Exception as error:  # noqa: BLE001 - the rows before it come first
                item, last = None, error
            if item is not None:
                waiting.append(self._threads.submit(self._encode, item))
            while waiting and (item is None or len(waiting) > _WAITING * self.count):
                for outcome in waiting.popleft().result():
                    tally.add(outcome)
                    yield outcome
            if item is None:
                break
        if last is not None:
            raise last

    def _encode(self, item: Chunk | Record) -> list[Outcome]:
        if isinstance(item, Record):  # holds what JSON cannot: a date, bytes
            return list(outcomes([item], self.tokenizer, self.options, Tally("")))
        worker = self._free.get()
        try:
            return worker.encode(item)
        finally:
            self._free.put(worker)


class OtherTokenizerError(Exception):
    """A tokenizer that is saved and loaded again is not the same: it has to stay in its process."""


def chunked(records: Iterable[Record], options: EncodeOptions) -> Iterator[Chunk | Record]:
    """Yield rows of one file and format together as messages, and alone those that cannot be one.

    Raises:
        DataError: The first row of a file has no known format.
    """
    names = column_names(options.columns)
    path: str | None = None
    head, rows, size = "", list[str](), 0

    def message() -> Chunk:
        return Chunk(str(path), f'{head}"rows":[{",".join(rows)}]}}'.encode())

    for record in records:
        if rows and (record.path != path or len(rows) == _ROWS or size > _BYTES):
            yield message()
            rows, size = [], 0
        if record.path != path:
            path = record.path
            fmt = detect(record, names) if options.fmt == "auto" else options.fmt
            basis = record.where if options.fmt == "auto" else "the configuration"
            head = json.dumps({"path": path, "fmt": fmt, "basis": basis})[:-1] + ", "
        try:
            rows.append(json.dumps([record.line, record.value]))
            size += len(rows[-1])
        except (TypeError, ValueError):
            if rows:
                yield message()
                rows, size = [], 0
            yield record
    if rows:
        yield message()


def encoded(
    records: Iterable[Record], tokenizer: Any, options: EncodeOptions, tally: Tally, workers: int
) -> Generator[Outcome]:
    """Yield what becomes of each record, with as many processes as are asked for.

    Args:
        records: The rows.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        options: How to encode.
        tally: Counts the outcomes.
        workers: Processes; fewer than two are this one alone.

    Raises:
        DataError: A row is wrong, or a process has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            pool = stack.enter_context(Pool(tokenizer, options, workers)) if workers > 1 else None
        except OtherTokenizerError:
            pool = None
        if pool is None:
            yield from outcomes(records, tokenizer, options, tally)
        else:
            yield from pool.outcomes(records, tally)
