"""Advice where a program does not fit."""

import dataclasses

import jax
import pytest

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.models import roofline
from opd_jax.planning import advice, setup, stages
from opd_jax.planning.collectives import Collective
from opd_jax.planning.compiled import Program
from opd_jax.planning.estimate import RunEstimate
from opd_jax.planning.memory import Memory
from opd_jax.planning.topology import Target
from tests.helpers.chip import CHIP

MIB = 2**20


def make_setup(capacity: int, **changes) -> setup.Setup:
  base = {"batch": 64, "rollouts_per_prompt": 4, "horizon.max": 4096, "horizon.kind": "full", "micro_batch": 64}
  c = configs.override(configs.load("opd"), base | {"eval.k": 4} | changes)
  return setup.make(c, Target("test", tuple(jax.devices()[:1]), CHIP, capacity), 64)


def program(name: str, temporaries: int, **changes) -> Program:
  return Program(name, 1.0, Memory(arguments=MIB, outputs=0, temporaries=temporaries, code=7), **changes)


def needed(s: setup.Setup, *programs: Program) -> list[advice.MemoryNeed]:
  return advice.needs(s, [(4096, p) for p in programs], stages.resident(s))


def test_a_program_needs_its_own_memory_and_what_lies_beside_it():
  s = make_setup(10**9)
  resident = stages.resident(s)
  rollout, update = needed(s, program("rollout", 100), program("update", 200))
  assert rollout.total == MIB + 100 + 7 + 7 + resident["optimizer"] + resident["teachers"]
  assert update.total == MIB + 200 + 7 + 7, "the state and the teachers are its arguments"
  parameters = roofline.parameter_count(s.student)
  assert resident["params"] == 4 * parameters
  assert resident["optimizer"] == pytest.approx(8 * parameters, abs=100)
  assert resident["teachers"] == 4 * sum(map(roofline.parameter_count, s.teachers))
  assert stages.resident(make_setup(10**9, teacher_offload=True))["teachers"] == 0


def test_what_fits_needs_no_advice():
  s = make_setup(10**9)
  (need,) = needed(s, program("rollout", 100))
  assert need.fits
  assert advice.suggestions(s, need, stages.resident(s)) == []


def test_a_rollout_that_does_not_fit_gets_the_batch_that_would():
  s = make_setup(2**30)
  caches = roofline.cache_bytes(s.student, 64, 64 + 4 * 4096, 4)
  (need,) = needed(s, program("rollout", int(caches)))
  assert not need.fits
  found = {x.keys: x for x in advice.suggestions(s, need, stages.resident(s))}
  batch = next(x for key, x in found.items() if key.startswith("--config.batch="))
  prompts = int(batch.keys.partition("=")[2])
  assert batch.saves == pytest.approx(caches * (1 - prompts / 64))
  assert batch.saves >= need.excess
  assert caches * (1 - (prompts + 1) / 64) < need.excess, "and no smaller than it has to be"
  assert "--config.rollouts_per_prompt" in " ".join(found)


def test_an_update_that_does_not_fit_gets_its_micro_batch_and_remat():
  s = make_setup(2**30)
  (need,) = needed(s, program("update", 2**30 + 2**29))
  found = [x.keys for x in advice.suggestions(s, need, stages.resident(s))]
  assert "--config.micro_batch=32" in found
  assert "--config.remat=layer" in found


def test_an_evaluation_that_does_not_fit_gets_its_own_keys():
  s = make_setup(2**28)
  (need,) = needed(s, program("evaluate", 2**29))
  found = " ".join(x.keys for x in advice.suggestions(s, need, stages.resident(s)))
  assert "--config.eval.batch=" in found
  assert "--config.eval.k=" in found
  assert "micro_batch" not in found


def test_weights_that_travel_at_every_token_are_remarked():
  s = make_setup(10**9)
  wrong = Collective("all-gather", 64, 4, "fsdp", 1, True, True, "decode/qkv")
  remarks = advice.remarks(s, [program("rollout", 1, collectives=[wrong])], stages.resident(s))
  assert "over fsdp at every token" in " ".join(remarks)
  right = dataclasses.replace(wrong, axes="tensor")
  assert advice.remarks(s, [program("rollout", 1, collectives=[right])], stages.resident(s)) == []


def test_an_update_that_waits_for_its_links_gets_a_larger_micro_batch():
  s = make_setup(10**9, micro_batch=16)

  def remarks(operand_bytes: int) -> str:
    gather = Collective("all-gather", operand_bytes, 2, "fsdp", 1, False, True, "")
    update = program("update", 1, collectives=[gather])
    return " ".join(advice.link_bound(s, update, RunEstimate(s, {4096: [update]}), 4096))

  assert remarks(1) == ""
  assert "--config.micro_batch=32" in remarks(10**12)
  assert "has 16" in remarks(10**12)


def test_a_micro_batch_is_rounded_up_to_the_row_shards_with_a_note(monkeypatch):
  monkeypatch.setattr(setup.meshes, "row_shards", lambda mesh: 16)
  s = make_setup(10**9, micro_batch=8)
  assert s.c.micro_batch == 16
  assert "row shards take 16 rows" in " ".join(s.notes)


def test_a_mesh_that_does_not_lie_on_the_slice_gets_one_sentence(monkeypatch):
  def refuse(*_):
    raise NotImplementedError("Failed to find assignment")

  monkeypatch.setattr(setup.meshes, "from_config", refuse)
  with pytest.raises(InputError, match="does not lie on a slice"):
    make_setup(10**9)
