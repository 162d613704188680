"""Tables instead of text: the same rows, through the hub extra, or a message that names it."""

from __future__ import annotations

import sys

import pytest

from mlxfn.data import hub
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.prepare import encode_splits
from mlxfn.errors import ConfigError, DataError
from tests.data.helpers import assistant, user, write_jsonl
from tests.support.tokenizers import wrapped

CHATS = [
    {"messages": [user(f"{i} plus {i}?"), assistant(f"{2 * i}")], "score": None if i else 1}
    for i in range(20)
]


def rows_of(source, **options):
    splits = encode_splits(source, wrapped("chatml"), EncodeOptions(max_seq_length=64), **options)
    return {name: split.rows.fingerprint() for name, split in splits.items()}


def write_parquet(path, rows):
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def plain(tmp_path):
    write_jsonl(tmp_path / "plain" / "train.jsonl", CHATS[:15])
    write_jsonl(tmp_path / "plain" / "validation.jsonl", CHATS[15:])
    return rows_of(tmp_path / "plain")


def test_a_saved_data_set_gives_the_rows_of_the_text_files(tmp_path, plain):
    """The fingerprint is that of the ids: where they came from does not matter."""
    datasets = pytest.importorskip("datasets")
    parts = {"train": CHATS[:15], "validation": CHATS[15:]}
    saved = datasets.DatasetDict({n: datasets.Dataset.from_list(p) for n, p in parts.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert rows_of(tmp_path / "saved") == plain
    for _ in range(2):
        assert rows_of(tmp_path / "saved", cache=tmp_path / "cache") == plain
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 2


def test_parquet_files_give_the_rows_of_the_text_files(tmp_path, plain):
    """With the names that the hub gives to shards."""
    folder = tmp_path / "tables"
    for name, part in (("train-00000-of-00001", CHATS[:15]), ("validation", CHATS[15:])):
        write_parquet(folder / f"{name}.parquet", part)
    assert rows_of(folder) == plain
    (folder / "validation.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(folder)


def test_a_wrong_row_of_a_table_is_named_by_its_number(tmp_path):
    """There is no line; the number of the row finds it as well."""
    wrong = [*CHATS[:2], {"messages": [{"role": "narrator", "content": "a"}]}]
    path = write_parquet(tmp_path / "train.parquet", wrong)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert caught.value.where == f"{path}:3"


def test_a_data_set_that_is_not_there_is_a_data_error():
    """Offline or misspelt: one message, exit code 3."""
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        rows_of("nobody/such-a-data-set")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("source", ["somebody/a-data-set", "train.parquet"])
def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch, source):
    """Nobody should have to guess what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    if source.endswith("parquet"):
        source = tmp_path / source
        source.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="hub extra") as caught:
        rows_of(source)
    assert "mlxfn[hub]" in str(caught.value.remedy)


def test_a_data_set_is_streamed_from_the_hub_without_a_copy(tmp_path, monkeypatch, plain):
    """Up to the call that needs the network: rows come one by one, of the revision asked for first."""
    datasets = pytest.importorskip("datasets")
    read, asked = [], []

    def rows(part):
        for row in part:
            read.append(row)
            yield row

    def load_dataset(name, *, revision, streaming):
        asked.append((name, revision, streaming))
        parts = {"train": CHATS[:15], "validation": CHATS[15:]}
        return datasets.IterableDatasetDict(
            {
                name: datasets.IterableDataset.from_generator(rows, gen_kwargs={"part": part})
                for name, part in parts.items()
            }
        )

    commits = iter(["1f", "1f", "2e"])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "revision_of", lambda _: next(commits))
    stores = tmp_path / "cache"
    options = {"streaming": True, "cache": stores}
    assert rows_of("somebody/rows", **options) == plain
    assert asked == [("somebody/rows", "1f", True)]
    assert len(read) == 20
    assert rows_of("somebody/rows", **options) == plain, "from the store"
    assert len(read) == 20
    assert rows_of("somebody/rows", **options) == plain, "another commit is another store"
    assert len(read) == 40
    assert len(list(stores.glob("*/manifest.json"))) == 4
