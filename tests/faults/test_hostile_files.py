"""Data files and configurations made to do harm, or made by accident: each has its one answer."""

from __future__ import annotations

import gzip

import pytest

from mlxfn import configfile
from mlxfn.assemble import assemble
from mlxfn.errors import ConfigError, DataError
from tests.support.runs import small_config

ROWS = b'{"text": "a"}\n' * 100
DATA: dict[str, bytes] = {
    "zeros": bytes(1000),
    "UTF-16": '{"text": "a"}'.encode("utf-16"),
    "Latin-1": b'{"text": "\xe9"}\n',
    "half a character": b'{"text": "\\ud800"}\n',
    "deep lists": b"[" * 100_000 + b"\n",
    "deep tables": b'{"a":' * 100_000 + b"\n",
    "a number of 100,000 digits": b'{"input_ids": [' + b"1" * 100_000 + b"]}\n",
    "a torn row": ROWS + b'{"text": "a',
    "a row that is a list": b"[1, 2]\n",
    "two rows in a line": b'{"text": "a"} {"text": "b"}\n',
    "a column twice": b'{"text": "a", "text": 5}\n',
    "nothing": b"",
    "empty lines": b"\n\n\n",
    "no numbers": b'{"input_ids": [NaN]}\n',
    "an id beyond 64 bits": b'{"input_ids": [99999999999999999999]}\n',
    "an id beyond the vocabulary": b'{"input_ids": [1, 100000]}\n',
    "a negative id": b'{"input_ids": [-1, 2]}\n',
    "half an id": b'{"input_ids": [1.5, 2]}\n',
    "a text that is a number": b'{"text": 5}\n',
    "messages without any": b'{"messages": []}\n',
    "a message that is a table": b'{"messages": [{"role": "user", "content": {"a": 1}}]}\n',
}
PACKED: dict[str, bytes] = {
    "cut short": gzip.compress(ROWS)[:-5],
    "another checksum": gzip.compress(ROWS)[:-8] + b"12345678",
    "another content": b"\x1f\x8b" + b"x" * 100,
    "not packed at all": ROWS,
    "300 MB of zeros in 300 kB": gzip.compress(bytes(300_000_000), 1),
}
CONFIGS: dict[str, tuple[str, bytes]] = {
    "a tag that runs code": ("x.yaml", b"!!python/object/apply:os.system ['touch harm']\n"),
    "a tag that makes an object": ("x.yaml", b"model: !!python/name:os.system\n"),
    "a laugh of aliases": (
        "x.yaml",
        b"a: &a [x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c]\n" % (n, n, n - 1, n - 1) for n in range(98, 123)),
    ),
    "deep YAML": ("x.yaml", b"a: " + b"[" * 5_000),
    "deep TOML": ("x.toml", b"a = " + b"[" * 5_000),
    "a long number": ("x.toml", b"output_dir = " + b"1" * 10_000),
    "binary": ("x.toml", bytes(range(256))),
    "UTF-16": ("x.toml", "output_dir = 'x'".encode("utf-16")),
    "a key twice": ("x.toml", b"output_dir = 'x'\noutput_dir = 'y'\n"),
    "a list": ("x.yaml", b"- 1\n- 2\n"),
    "another format": ("x.pickle", b"\x80\x04N."),
}


@pytest.mark.parametrize("name", [*DATA, *PACKED])
def test_a_hostile_data_file_gets_one_clear_answer(tmp_path, name):
    """No traceback, no crash in the gather of an id, and no file taken for a smaller one."""
    path = tmp_path / ("rows.jsonl" if name in DATA else "rows.jsonl.gz")
    path.write_bytes({**DATA, **PACKED}[name])
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        assemble(small_config(tmp_path / "run", data__path=str(path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_gets_one_clear_answer(tmp_path, monkeypatch, name):
    """A configuration is data: nothing in it is run, and none of it can hang the reader."""
    monkeypatch.chdir(tmp_path)
    file, content = CONFIGS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError):
        configfile.load(tmp_path / file)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file]
