"""Parquet, Arrow, saved data sets and the hub give the rows that JSONL would."""

import gzip
import importlib
import json
import sys

import pytest

from opd_jax.data.sources import read_examples
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError

CHAT = [{"content": "Be brief.", "role": "system"}, {"content": "2 + 2 =", "role": "user"}]
RECORDS = [
  {"prompt": CHAT, "answer": 4, "reward_model": {"ground_truth": "4", "style": "rule"}, "index": 0},
  {"prompt": CHAT[1:], "answer": None, "reward_model": {"ground_truth": "5", "style": "rule"}, "index": 1},
]


def read(path, on_bad_line="refuse", need_answer=False):
  return read_examples(path, Fields(), on_bad_line, need_answer)


@pytest.fixture
def table():
  return pytest.importorskip("pyarrow").Table.from_pylist(RECORDS)


def write(kind, table, path):
  pa = importlib.import_module("pyarrow")
  if kind == "parquet":
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=1)
    return path
  options = {"arrow": pa.ipc.new_file, "stream": pa.ipc.new_stream}
  with options[kind](str(path), table.schema) as sink:
    sink.write_table(table, max_chunksize=1)
  return path


@pytest.mark.parametrize("name", ["train", "train.jsonl", "train.bin"])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_a_table_is_read_whatever_its_name(tmp_path, table, kind, name):
  path = write(kind, table, tmp_path / name)
  examples, skipped, _ = read(path)
  assert [e.prompt for e in examples] == [tuple(r["prompt"]) for r in RECORDS]
  assert [e.answer for e in examples] == ["4", ""]
  assert [e.where for e in examples] == [f"{path}:row 1", f"{path}:row 2"]
  assert [dict(e.record) for e in examples] == RECORDS
  assert skipped == 0


def test_a_table_may_be_compressed_as_a_whole(tmp_path, table):
  path = write("parquet", table, tmp_path / "x.parquet")
  path.write_bytes(gzip.compress(path.read_bytes()))
  assert len(read(path).examples) == 2


def test_a_bad_row_has_its_number_and_can_be_skipped(tmp_path, table):
  path = write("parquet", table, tmp_path / "x.parquet")
  with pytest.raises(InputError, match=r"x\.parquet:row 2: the field 'answer' is null.*data\.on_bad_line=skip"):
    read(path, need_answer=True)
  assert read(path, "skip", need_answer=True).skipped == 1


def test_values_that_json_has_not_are_called_by_their_type(tmp_path):
  pa = pytest.importorskip("pyarrow")
  path = write("parquet", pa.Table.from_pylist([{"prompt": b"1 + 1"}]), tmp_path / "x.parquet")
  with pytest.raises(InputError, match="the field 'prompt' is a bytes; make it a string"):
    read(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
@pytest.mark.parametrize("keep", [7, 0.5, 0.9])
def test_a_damaged_table_is_refused_by_its_name(tmp_path, table, kind, keep):
  path = write(kind, table, tmp_path / "x.parquet")
  data = path.read_bytes()
  path.write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
  with pytest.raises(InputError, match=r"x\.parquet is a (Parquet|Arrow) file that cannot be read") as refused:
    read(path)
  assert "\n" not in str(refused.value)


def test_a_missing_library_is_named_with_the_extra(tmp_path, monkeypatch):
  path = tmp_path / "x.parquet"
  path.write_bytes(b"PAR1 and so on")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(InputError, match=r"x\.parquet is Parquet, which needs pyarrow, .* pip install 'opd-jax\[data\]'"):
    read(path)
  with pytest.raises(InputError, match=r"hub:a/b:train is a data set of the hub, which needs datasets"):
    read("hub:a/b:train")


@pytest.fixture
def saved(tmp_path):
  """A directory of a data set with a split, by `datasets`."""
  datasets = pytest.importorskip("datasets")
  split = datasets.Dataset.from_list(RECORDS)
  datasets.DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(
    tmp_path / "set", num_shards={"train": 2, "test": 1}
  )
  return tmp_path / "set"


def test_a_saved_data_set_is_read_in_its_order(saved):
  path = saved / "train"
  assert len(list(path.glob("*.arrow"))) == 2
  examples = read(path).examples
  assert [e.record["index"] for e in examples] == [0, 1]
  assert [e.where for e in examples] == [f"{path}:row 1", f"{path}:row 2"]
  assert [e.record["index"] for e in read(saved / "test").examples] == [1]


def test_a_directory_of_splits_is_refused_with_their_names(saved):
  with pytest.raises(InputError, match=r"holds the splits 'test', 'train' .*name one of them, such as .*set/test"):
    read(saved)


def test_a_saved_data_set_that_lacks_a_file_is_refused(saved):
  next((saved / "train").glob("*.arrow")).unlink()
  with pytest.raises(InputError, match=r"lacks data-0000.*copy the whole directory"):
    read(saved / "train")


def test_a_directory_names_a_file_that_is_in_it(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"")
  with pytest.raises(
    InputError, match=r"is a directory; data\.path needs a file, such as .*train-00000-of-00001\.parquet"
  ):
    read(tmp_path)
  (tmp_path / "state.json").write_text(json.dumps({"step": 1}))
  with pytest.raises(InputError, match="does not list the files of a data set"):
    read(tmp_path)


def test_a_data_set_is_asked_for_by_its_name_configuration_split_and_revision(monkeypatch):
  asked = []

  class Hub:
    @staticmethod
    def load_dataset(*names, **options):
      asked.append((names, options))
      return RECORDS

  monkeypatch.setitem(sys.modules, "datasets", Hub)
  assert [e.where for e in read("hub:openai/gsm8k:main:train").examples][1] == "hub:openai/gsm8k:main:train:row 2"
  read("hub:a/b@v1:test")
  assert asked == [
    (("openai/gsm8k", "main"), {"split": "train", "revision": None}),
    (("a/b",), {"split": "test", "revision": "v1"}),
  ]


def test_the_hub_reads_a_directory_of_files_too(tmp_path, table, monkeypatch):
  """`datasets` takes a path for a name, which shows its side of the call without a network."""
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  (tmp_path / "set").mkdir()
  write("parquet", table, tmp_path / "set" / "train.parquet")
  examples = read(f"hub:{tmp_path / 'set'}:train").examples
  assert [dict(e.record) for e in examples] == RECORDS


@pytest.mark.parametrize("name", ["hub:", "hub:a/b", "hub::train", "hub:a/b:c:d:e", "hub:a/b:"])
def test_a_name_without_a_split_is_refused(name):
  with pytest.raises(InputError, match="names no split of a data set; write hub:NAME:SPLIT"):
    read(name)


def test_what_the_hub_refuses_is_one_sentence(monkeypatch):
  class Hub:
    @staticmethod
    def load_dataset(*names, **options):
      raise ConnectionError("Couldn't reach 'a/b' on the Hub\nand more")

  monkeypatch.setitem(sys.modules, "datasets", Hub)
  with pytest.raises(
    InputError, match=r"hub:a/b:train cannot be loaded \(ConnectionError: Couldn't .* the network"
  ) as e:
    read("hub:a/b:train")
  assert "\n" not in str(e.value)
