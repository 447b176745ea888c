"""Plans of prompts with images: the frozen towers that lie on every device, their program, and an evaluation that sees."""

import dataclasses

import jax
import pytest

from opd_jax import config as configs
from opd_jax.models import hf_vision, roofline, vision
from opd_jax.planning import advice, estimate, record, setup, stages, tables
from opd_jax.planning.compiled import Program
from opd_jax.planning.memory import Memory
from opd_jax.planning.topology import Target
from tests.helpers import seeing_models, seeing_runs
from tests.helpers.chip import CHIP

EVALUATION = {"eval.every": 3, "eval.prompts": 4, "eval.batch": 4, "eval.max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return seeing_models.write_small(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def size(model) -> int:
  """The bytes of a tower in float32."""
  seeing = hf_vision.read(model)
  assert seeing is not None
  return 4 * sum(a.size for a in jax.tree.leaves(vision.init(seeing.tower, jax.random.key(0))))


def planned(config, **changes) -> setup.Setup:
  sizes = {"data.max_prompt": 64} | changes
  target = Target("test", tuple(jax.devices()[:1]), CHIP, 10**9)
  return setup.make(configs.override(config, sizes), target, 64)


def test_frozen_towers_lie_on_every_device(model, size, tmp_path):
  crop, opd = seeing_runs.crop_config(model, "none.jsonl"), seeing_runs.opd_config(model, "none.jsonl")
  larger = seeing_models.write_small(tmp_path / "larger", seed=5)
  towers = {
    "one for student and teacher": (crop, {}, 1),
    "another for the evaluation": (crop, EVALUATION, 2),
    "the teacher's own": (opd, {"teacher": str(larger)}, 2),
    "one that is trained is a part of the student": (opd, {"vision.train": True, **EVALUATION}, 0),
    "a teacher's stays frozen": (opd, {"vision.train": True, "teacher": str(larger)}, 1),
    "prompts without images": (opd, {"data.image_field": "", "data.box_field": ""}, 0),
  }
  for why, (config, changes, n) in towers.items():
    assert stages.resident(planned(config, **changes))["towers"] == n * size, why


def test_the_initial_student_teaches_with_the_students_tower(model):
  trained, frozen = (
    planned(seeing_runs.crop_config(model, "none.jsonl", **{"vision.train": on})) for on in (True, False)
  )
  assert trained.teachers == (trained.student,)
  assert trained.student.tower is not None
  assert frozen.teachers[0].tower is None


def test_a_teacher_of_which_only_the_decoder_is_known_is_told(model, size):
  s = planned(seeing_runs.opd_config(model, "none.jsonl", "Qwen3-0.6B"))
  assert stages.resident(s)["towers"] == size
  assert "of Qwen3-0.6B only the sizes of its decoder are known: its vision tower is not counted" in s.notes


def test_a_program_needs_the_towers_that_lie_beside_it(model, size):
  s = planned(seeing_runs.crop_config(model, "none.jsonl"), **EVALUATION)
  resident = stages.resident(s)
  programs = [Program(name, 1.0, Memory(10, 0, 100, 7)) for name in ("rollout", "update", "encode")]
  rollout, update, encode = advice.needs(s, [(6, p) for p in programs], resident)
  assert rollout.others == 14 + resident["optimizer"] + resident["teachers"] + 2 * size
  assert update.others == 14 + 2 * size
  assert encode.others == 14 + resident["params"] + resident["optimizer"] + resident["teachers"] + size


def test_the_program_that_encodes_is_planned_with_the_others(model, size):
  """An image of 48 x 48 pixels has 144 patches and 36 features, and 113 of them go through together."""
  s = planned(seeing_runs.crop_config(model, "none.jsonl"))
  program = stages.encoding(s)
  assert program is not None
  assert program.memory is not None
  assert stages.image_patches(s) == 144
  assert program.memory.arguments >= size + 113 * 144 * 48 * 4
  assert stages.encoding(planned(s.c, **{"vision.train": True})) is None
  (tower,) = stages.towers(s)
  (cost,) = estimate.RunEstimate(s, {}).costs("encode", 144)
  assert cost == roofline.Cost(roofline.tower_flops(tower, 113, 36), size)
  others = [Program(name, 1.0, Memory(10, 0, 100, 7)) for name in ("rollout", "update")]
  found = record.target(s, s.stages, {6: others}, None, stages.resident(s), {}, program)
  assert [(p["name"], p["width"]) for p in found["stages"][0]["programs"]][-1] == ("encode", 144)
  assert "of frozen vision towers" in "\n".join(tables.target_block(found).lines)


def test_an_image_that_is_too_large_is_shrunk(model):
  s = planned(seeing_runs.crop_config(model, "none.jsonl"))
  need = advice.MemoryNeed(Program("encode", 1.0, Memory(10, 0, 2**31, 7)), 2 * 16_384, 0, 10**9)
  found = [x.keys for x in advice.suggestions(s, need, stages.resident(s))]
  assert found == [f"--config.data.max_pixels={16_384 * 4 * 4}"]


def test_the_evaluation_reads_images(model):
  s = planned(seeing_runs.crop_config(model, "none.jsonl"), **EVALUATION)
  seen = stages.evaluation(s)
  text = stages.evaluation(without_images(s))
  assert seen.memory is not None
  assert text.memory is not None
  features = 4 * 36 * 16 * 4 * (1 + 1)  # of four prompts, and behind one tap
  assert seen.memory.arguments - text.memory.arguments >= features


def without_images(s: setup.Setup) -> setup.Setup:
  recipe = type(s.recipe)(dataclasses.replace(s.recipe.specs, images=()))
  return dataclasses.replace(s, recipe=recipe)
