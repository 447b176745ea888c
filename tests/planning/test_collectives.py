"""What devices send, against programs whose collectives are known."""

import pytest

from opd_jax.planning import collectives, hlo
from opd_jax.planning.collectives import Collective
from tests.helpers.eight_devices import json_from_eight_devices
from tests.helpers.hlo_texts import FUSED, RING

pytestmark = pytest.mark.long


def collective(kind: str, held: int, group: int, times: int = 1) -> Collective:
  return Collective(kind, held, group, "", times, False, True, "")


def test_what_is_sent_around_a_ring():
  """Four devices that hold 100 bytes each."""
  assert collective("all-gather", 100, 4).sent_bytes == 300
  assert collective("all-reduce", 100, 4).sent_bytes == 150
  assert collective("reduce-scatter", 100, 4).sent_bytes == 75
  assert collective("all-to-all", 100, 4).sent_bytes == 75
  assert collective("collective-permute", 100, 2, times=7).sent_bytes == 700
  assert collective("all-reduce", 100, 1).sent_bytes == 0


def test_loops_multiply():
  (found,) = collectives.parse(hlo.parse(RING))
  assert (found.kind, found.operand_bytes, found.times, found.trips_known) == (
    "collective-permute",
    16 * 128 * 2,
    3 * 4,
    True,
  )
  assert not found.in_token_loop


def test_pieces_of_one_collective_are_one_and_branches_exclude_each_other():
  found = collectives.parse(hlo.parse(FUSED))
  sizes = [(c.kind, c.operand_bytes, c.group_size) for c in found]
  assert sizes[:2] == [("all-gather", 128 * 64 * 2, 4), ("reduce-scatter", 64 * 32 * 4, 4)]
  assert [kind for kind, *_ in sizes[2:]] == ["all-reduce", "all-reduce"], "of the branch that sends more"


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
  assert collectives.replica_groups(text, 4) == groups


@pytest.fixture(scope="module")
def compiled():
  """Real programs for eight devices, in a process of its own."""
  return json_from_eight_devices("tests.planning.eight_device_programs", optimised=True)


def test_a_gather_in_a_scan_and_a_sum_outside(compiled):
  """Seven layers gather f32[16, 64] over the four of fsdp; f32[] is summed over data and fsdp once."""
  found = compiled["scan"]["collectives"]
  inside = [c for c in found if c["kind"] == "all-gather"]
  assert [(c["operand_bytes"], c["group_size"], c["axes"], c["times"]) for c in inside] == [(16 * 64 * 4, 4, "fsdp", 7)]
  assert inside[0]["sent_bytes"] == 7 * 3 * 16 * 64 * 4
  outside = [c for c in found if c["kind"] == "all-reduce"]
  assert [(c["operand_bytes"], c["group_size"], c["axes"], c["times"]) for c in outside] == [(4, 8, "data+fsdp", 1)]
  assert all(c["trips_known"] and not c["in_token_loop"] for c in found)


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
  assert not [c for c in found["collectives"] if c["in_token_loop"] and c["operand_bytes"] > 16], (
    "numbers and flags only"
  )
  gathered = sum(c["operand_bytes"] * c["group_size"] for c in found["collectives"] if c["kind"] == "all-gather")
  assert gathered == pytest.approx(compiled["matrices"] * 4, rel=0.15)


def test_a_gather_at_every_token_is_seen(compiled):
  """The same rollout with weights that stay split over fsdp: what must never happen."""
  inside = [c for c in compiled["wrong"]["collectives"] if c["in_token_loop"] and c["kind"] == "all-gather"]
  assert inside
  assert {c["axes"] for c in inside} == {"fsdp"}
