"""What devices send, against programs whose collectives are known."""

import json
import os
import subprocess
import sys

import pytest

from opd_jax.planning import collectives, hlo
from opd_jax.planning.collectives import Collective
from tests.planning.texts import FUSED, RING


def one(kind: str, held: int, group: int, times: int = 1) -> Collective:
  return Collective(kind, held, group, "", times, False, True, "")


def test_what_is_sent_around_a_ring():
  """Four devices that hold 100 bytes each."""
  assert one("all-gather", 100, 4).sent == 300
  assert one("all-reduce", 100, 4).sent == 150
  assert one("reduce-scatter", 100, 4).sent == 75
  assert one("all-to-all", 100, 4).sent == 75
  assert one("collective-permute", 100, 2, times=7).sent == 700
  assert one("all-reduce", 100, 1).sent == 0


def test_loops_multiply():
  (found,) = collectives.read(hlo.parse(RING))
  assert (found.kind, found.held, found.times, found.counted) == ("collective-permute", 16 * 128 * 2, 3 * 4, True)
  assert not found.in_token_loop


def test_pieces_of_one_collective_are_one_and_branches_exclude_each_other():
  found = collectives.read(hlo.parse(FUSED))
  said = [(c.kind, c.held, c.group) for c in found]
  assert said[:2] == [("all-gather", 128 * 64 * 2, 4), ("reduce-scatter", 64 * 32 * 4, 4)]
  assert [kind for kind, *_ in said[2:]] == ["all-reduce", "all-reduce"], "of the branch that sends more"


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups={}", [[0, 1, 2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, d", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("nothing that is known", []),
  ],
)
def test_groups(text, groups):
  assert collectives.group(text, 4) == groups


@pytest.fixture(scope="module")
def compiled():
  """Real programs for eight devices, in a process of its own."""
  env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # the optimised programs are the subject
  command = [sys.executable, "-m", "tests.planning.on_eight"]
  done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_a_gather_in_a_scan_and_a_sum_outside(compiled):
  """Seven layers gather f32[16, 64] over the four of fsdp; f32[] is summed over data and fsdp once."""
  found = compiled["scan"]["collectives"]
  inside = [c for c in found if c["kind"] == "all-gather"]
  assert [(c["held"], c["group"], c["axes"], c["times"]) for c in inside] == [(16 * 64 * 4, 4, "fsdp", 7)]
  assert inside[0]["sent"] == 7 * 3 * 16 * 64 * 4
  outside = [c for c in found if c["kind"] == "all-reduce"]
  assert [(c["held"], c["group"], c["axes"], c["times"]) for c in outside] == [(4, 8, "data+fsdp", 1)]
  assert all(c["counted"] and not c["in_token_loop"] for c in found)


def test_memory_and_the_largest_buffer(compiled):
  memory, buffers = compiled["scan"]["memory"], compiled["scan"]["buffers"]
  assert memory["arguments"] == 4 * (7 * 16 * 64 + 8 * 64 // 8)
  assert memory["outputs"] == 4
  assert buffers[0]["array"] == "f32[7,16,64]"
  assert max(b["total"] for b in buffers) == buffers[0]["total"] == 4 * 7 * 16 * 64


def test_a_rollout_has_a_token_loop_for_each_segment_and_sends_nothing_in_it(compiled):
  """Weights are gathered over fsdp before the first token, and each once."""
  found = compiled["rollout"]
  assert found["token_loops"] == 2
  assert not [c for c in found["collectives"] if c["in_token_loop"] and c["held"] > 16], "numbers and flags only"
  gathered = sum(c["held"] * c["group"] for c in found["collectives"] if c["kind"] == "all-gather")
  assert gathered == pytest.approx(compiled["matrices"] * 4, rel=0.15)


def test_a_gather_at_every_token_is_seen(compiled):
  """The same rollout with weights that stay split over fsdp: what must never happen."""
  inside = [c for c in compiled["wrong"]["collectives"] if c["in_token_loop"] and c["kind"] == "all-gather"]
  assert inside
  assert {c["axes"] for c in inside} == {"fsdp"}
