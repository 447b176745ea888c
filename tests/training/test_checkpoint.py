"""Checkpoints that are damaged are refused, and nothing is written meanwhile."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from opd_jax.errors import InputError
from opd_jax.training import checkpoint
from tests.helpers.damage import contents

STATE = {"w": jnp.arange(4.0)}
POSITION = {"step": 3, "tokens": 9, "prompts": {"at": 1}, "lengths": {"metrics.jsonl": 5}, "seconds": {"update": 1.5}}
LIKE = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), STATE)


@pytest.fixture
def root(tmp_path):
  """A workdir with a checkpoint of step 3."""
  checkpoints = checkpoint.Checkpoints(epath.Path(tmp_path), keep=1)
  checkpoints.save(3, STATE, POSITION)  # pyright: ignore[reportArgumentType]: any tree can be saved
  checkpoints.close()
  return tmp_path


def resume(root, fail: Exception | None = None):
  def restore(state, begin_anew_at):
    if fail:
      raise fail
    assert state == {"at": 1}

  prompts, recipe = SimpleNamespace(restore=restore), SimpleNamespace(load_state_dict=lambda saved: None)
  return checkpoint.resume(epath.Path(root), LIKE, prompts, recipe)  # pyright: ignore[reportArgumentType]


def test_the_last_checkpoint_is_restored_and_nothing_written(root):
  before = contents(root)
  state, position = resume(root)
  np.testing.assert_array_equal(state["w"], STATE["w"])  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]
  assert position == POSITION
  assert contents(root) == before


def test_a_new_workdir_has_none_and_stays_new(tmp_path):
  assert resume(tmp_path / "new") == (None, None)
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  "change",
  [
    {"step": 4},
    {"step": "3"},
    {"tokens": None},
    {"tokens": -1},
    {"lengths": []},
    {"lengths": {"metrics.jsonl": 0.5}},
    {"seconds": None},
    {"seconds": {"update": "long"}},
    {"outcome": {"teps": 2}},
    {"outcome": {"steps": "two"}},
    {"outcome": [2]},
  ],
)
def test_a_position_that_no_run_saves_is_refused(root, change):
  file = root / "checkpoints" / "3" / "position" / "metadata"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  before = contents(root)
  with pytest.raises(InputError, match=r"step 3 in .* is damaged: its position .*; delete .*3 to go on"):
    resume(root)
  assert contents(root) == before


@pytest.mark.parametrize("fault", [KeyError("at"), TypeError("no"), ValueError("no"), AttributeError("no")])
def test_what_the_prompts_cannot_restore_is_damage(root, fault):
  with pytest.raises(InputError, match="is damaged: its position"):
    resume(root, fault)


def test_checkpoints_that_are_a_file_are_refused(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(InputError, match="checkpoints is a file"):
    resume(tmp_path)


def test_damaged_metadata_of_a_checkpoint_are_refused(root):
  file = root / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"performance_metrics": {"": 1.0}}))
  before = contents(root)
  with pytest.raises(InputError, match=r"The checkpoints in .* cannot be opened"):
    resume(root)
  assert contents(root) == before
