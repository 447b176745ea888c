"""Eight fake devices give what one gives, and what a mesh cannot split is said or refused."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.models import model_sharding, vision
from opd_jax.models.vision import VisionConfig
from opd_jax.rollout import sample
from opd_jax.runtime import mesh as meshes
from opd_jax.training import specs
from tests.conftest import STUDENT
from tests.helpers.eight_devices import json_from_eight_devices
from tests.helpers.mesh_runs import NEVER, RUNS

FIRST = (
  "popd 1",
  "popd data 2 x fsdp 2 x tensor 2, segments and buckets",
)
LONG = (
  "moving 1",
  "moving data 2 x fsdp 2 x tensor 2, adapters",
  "opcod 1",
  "opcod data 2 x fsdp 2 x tensor 2",
  "d_opsd 1",
  "d_opsd data 2 x fsdp 2 x tensor 2",
  "graphpo 1",
  "graphpo data 2 x fsdp 2 x tensor 2",
  "summaries 1",
  "summaries data 2 x fsdp 2 x tensor 2",
  "zppo 1",
  "zppo data 2 x fsdp 2 x tensor 2",
  "resample data 2",
  "dppo 1",
  "dppo data 2 x fsdp 2 x tensor 2",
  "opd 1",
  "opd fsdp 4 x expert 2, teacher over all and offloaded",
  "topd 1",
  "topd data 2 x tensor 4, which share heads",
  "ccopd 1",
  "ccopd data 2 x fsdp 2 x tensor 2, adapters",
  "masked 1",
  "masked data 2 x fsdp 2 x tensor 2",
  "agreement 1",
  "agreement data 2 x fsdp 2 x tensor 2",
  "popd 1",
  "popd data 2",
  "popd fsdp 2 x tensor 2",
)


@pytest.mark.long
@pytest.mark.parametrize("names", [FIRST, pytest.param(LONG, marks=pytest.mark.long)], ids=["eight", "two and four"])
def test_several_devices_give_the_losses_of_one(names, tiny, tmp_path):
  """Of every method; one test, so that the runs are made once however many processes test."""
  runs = json_from_eight_devices("tests.helpers.mesh_runs", tiny["student"], tiny["teacher"], tmp_path, *names)
  for name in (name for name in names if RUNS[name][1] > 1 and f"{RUNS[name][0]} 1" in names):
    several, alone = runs[name], runs[f"{RUNS[name][0]} 1"]
    assert [(r["kind"], r.get("model")) for r in several["records"]] == [
      (r["kind"], r.get("model")) for r in alone["records"]
    ]
    for mine, theirs in zip(several["records"], alone["records"], strict=True):
      if mine["kind"] == "train":
        assert mine["tokens"] == theirs["tokens"], name
        assert mine.get("comments") == theirs.get("comments"), name
        np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(mine["grad_norm"], theirs["grad_norm"], rtol=1e-4, err_msg=name)
        for name_of in ("momentum_cosine", "second_moment_spread"):
          assert (mine.get(name_of) is None) == (theirs.get(name_of) is None), name
          np.testing.assert_allclose(mine.get(name_of) or 0, theirs.get(name_of) or 0, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(mine.get("agreement", 0), theirs.get("agreement", 0), rtol=1e-4, err_msg=name)
      else:
        assert mine["length"] == theirs["length"], name
    assert several["samples"] == alone["samples"], f"greedy tokens differ: {name}"

  # A group is replaced by one of its own device, so that several devices choose others than one.
  for record in runs.get("resample data 2", {"records": []})["records"]:
    if record["kind"] == "train":
      assert record["resampled"] > 0
      assert record["step_tokens"] == sum(record["by_position"]["count"]) + record["discarded_tokens"]
      assert sum(record["groups_by_solve_rate_sampled"]) == 8 + record["resampled"]

  # A draw whose ids lie over four devices, where only block masses travel.
  several, alone = runs["drawn"]["several"], runs["drawn"]["alone"]
  assert several[0] == alone[0]
  assert len(set(alone[0])) > 4
  assert not any(first <= token < end for token in alone[0] for first, end in NEVER)
  np.testing.assert_allclose(several[1], alone[1], rtol=1e-5)


@pytest.mark.long
def test_the_rollouts_of_a_prompt_stay_on_its_device():
  """One device and eight make the same of four rollouts a prompt, and nothing more is sent than for one of each."""
  found = json_from_eight_devices("tests.helpers.prompt_groups", optimised=True)
  one, eight = found["one"], found["eight"]
  assert eight["tokens"] == one["tokens"]
  np.testing.assert_allclose(eight["loss"], one["loss"], rtol=1e-5)
  np.testing.assert_allclose(eight["grad_norm"], one["grad_norm"], rtol=1e-4)
  assert one["sent"] == {}
  assert eight["sent"] == found["eight, a prompt each"]["sent"] != {}


@pytest.mark.long
@pytest.mark.parametrize("model", ["olmo3", "gemma3", "qwen3.5"])
def test_models_whose_layers_differ_are_the_same_on_eight_devices(model):
  """Which share each key/value head, and norm queries and keys over all of them."""
  found = json_from_eight_devices("tests.helpers.layer_kind_meshes", model)
  one, eight = found["one"], found["eight"]
  assert eight["tokens"] == one["tokens"]
  np.testing.assert_allclose(eight["loss"], one["loss"], rtol=1e-5)
  np.testing.assert_allclose(eight["grad_norm"], one["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("V", [31, 37, 64, 1024, 32_000, 50_257, 128_256, 151_936, 152_064])
def test_blocks_of_ids_are_whole_on_every_device(V):
  blocks = sample.num_blocks(V)
  assert 1 <= blocks <= V
  if V > 1000 and V % 128 == 0:
    assert blocks % 128 == 0
    assert V % blocks == 0
  if V > 1000:
    assert max(blocks, V / blocks) < 10 * V**0.5


def test_the_weights_of_a_rollout_are_split_over_tensor_alone():
  from opd_jax.models import decoder
  from opd_jax.rollout import cache
  from tests.conftest import TEACHER

  mesh = meshes.make(devices=jax.devices()[:1])  # every size is divisible by 1, so every rule shows
  laid = jax.eval_shape(
    lambda: cache.prepare_decode_params(decoder.init(TEACHER, jax.random.key(0)), TEACHER, np.dtype("float32"))
  )
  found = {name: tuple(s.spec) for name, s in meshes.shardings(mesh, laid, "rollout").layers[0].items()}
  assert found["qkv"] == (None, "tensor", None, None)
  assert found["qkv_bias"] == ("tensor", None, None)
  assert found["out"] == ("tensor", None, None, None)
  assert found["gate_up"] == (None, None, "tensor")
  assert found["down"] == ("tensor", None)
  assert found["attn_norm"] == (None,)


TOWERS = {
  "plain": VisionConfig(2, 32, 4, 48, 32, patch=4, grid=4, taps=(0,)),
  "gated": VisionConfig(2, 32, 4, 48, 32, patch=4, gated=True, window=4),
}
WHOLE = ("norm", "bias", "patch", "position")  # small: what the names of leaves that every device may hold in full have


@pytest.mark.parametrize("layout", ["train", "teacher:fsdp"])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_matrices_of_a_tower_are_split_over_width_and_heads(tower, layout):
  mesh: Any = types.SimpleNamespace(axis_names=meshes.AXES, shape={"data": 2, "fsdp": 2, "expert": 1, "tensor": 2})
  leaves = jax.tree_util.tree_leaves_with_path(vision.shapes(TOWERS[tower]), is_leaf=lambda x: isinstance(x, tuple))
  split = {path[-1].key: meshes.spec(mesh, path[-1].key, shape, layout) for path, shape in leaves}
  matrices = {name: spec for name, spec in split.items() if not any(part in name for part in WHOLE)}
  assert len(matrices) == (7 if tower == "gated" else 6)
  for name, spec in matrices.items():
    assert {"fsdp", "tensor"} <= set(spec), name


def test_a_slice_of_rows_follows_the_mesh(small):
  """Gradient-accumulation slices hold a row for each row shard, or the run is refused with what would work."""

  mesh: Any = types.SimpleNamespace(shape={"data": 2, "fsdp": 2, "expert": 1, "tensor": 1})

  def take(micro, batch=24):
    return specs.micro_batch(small(batch=batch, micro_batch=micro), mesh)

  assert (take(0), take(1), take(4), take(5), take(9)) == (24, 4, 4, 8, 12)
  with pytest.raises(InputError, match=r"multiple of the mesh's 4 row shards"):
    take(9, batch=10)


def on(tensor: int) -> Any:
  return types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "expert": 1, "tensor": tensor})


def test_what_the_tensor_axis_does_not_divide_is_said():
  """4 query heads, 2 key/value heads, 24 feed-forward columns, 37 ids."""
  warnings = model_sharding.uneven(on(3), "the student", STUDENT)
  assert [s.split(" of the student")[0].split("the ", 1)[1] for s in warnings] == [
    "4 query heads",
    "37 vocabulary ids",
    "2 key/value heads",
  ]
  assert "2 or 4 would split them" in warnings[0]
  assert "1 or 2 would split them" in warnings[2] or "2 would" in warnings[2]
  assert not any("heads" in s for s in model_sharding.uneven(on(4), "the student", STUDENT)), (
    "a head is copied to two devices"
  )
  assert model_sharding.for_rollout(on(4), STUDENT).kv_heads == 4
  assert model_sharding.for_rollout(on(2), STUDENT) == STUDENT
  assert model_sharding.for_rollout(on(8), STUDENT) == STUDENT, "4 query heads do not divide"


class Chip:
  """A device of one of two slices of four."""

  platform = device_kind = "cpu"

  def __init__(self, i: int):
    self.id, self.slice_index, self.process_index = i, i // 4, i // 4


def test_slices_lie_along_data():
  """Devices of two slices: neighbours along every axis but data are of one slice."""
  devices = [Chip(i) for i in range(8)]
  with pytest.raises(InputError, match=r"over 2 slices.*multiple of 2, such as 2 or 4"):
    meshes.make(data=1, fsdp=8, devices=devices)
  mesh = meshes.make(data=4, fsdp=2, devices=devices)
  of = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  assert of.shape == (4, 2, 1, 1)
  assert (of == of[:, :1]).all()
  assert of[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (2, 1, 1), (-2, 1, 1), (1, 1, 1, 2)])
def test_meshes_that_cannot_be_made(sizes):
  with pytest.raises(InputError, match=r"config\.mesh"):
    meshes.make(*sizes, devices=jax.devices()[:1])
