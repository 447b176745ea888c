"""The report's section on hard questions: the buffer's history by tier, and what prompts with candidates came to."""

import json

import pytest

from opd_jax.errors import InputError
from opd_jax.reports import buffers, page
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load
from tests.helpers.reward_runs import reward_workdir


def with_buffer(path, **changes):
  """A run of 20 steps that learns from a reward, and in every step lets a question of no right rollout enter."""
  reward_workdir(path)
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for record in records:
    if record["kind"] == "train":
      step = record["step"]
      history = {
        "entered": [step, 2, 0],
        "graduated": [step // 2, 0, 0],
        "evicted": [0, 1, 0],
        "visits": [2 * step, 3, 0],
      }
      record |= {"buffer_history": history, "buffer": step, "hard": 4, "prompts_bcq": 1 if step > 10 else 0}
      record |= {"plain_tokens": 5000} | ({"bcq_repeats_right": 0.75} if step > 10 else {}) | changes
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def test_history_by_tier_and_changes_from_the_first_to_the_last_steps(tmp_path):
  comparison = compare(load([with_buffer(tmp_path / "a")]))
  (label,) = (arm.label for arm in comparison.arms)
  assert buffers.history_rows(comparison.arms) == [
    {"arm": label, "right at entry": "0", "entered": "20", "graduated": "10 (50%)", "evicted": "0"}
    | {"still there": "10", "visits of one, mean": "2.00"},
    {"arm": label, "right at entry": "1", "entered": "2", "graduated": "0 (0%)", "evicted": "1"}
    | {"still there": "1", "visits of one, mean": "1.50"},
  ]
  rows = {row[""]: row[label] for row in buffers.asked_rows(comparison.arms)}
  assert rows["questions in the buffer"] == "1.5 → 19.5"
  assert rows["answers to BCQs that are the right candidate's"] == "– → 75%"
  assert rows["tokens of a step: plain rollouts"] == "5,000 → 5,000"
  assert "reward of NCQs" not in rows
  text = page.write(comparison, tmp_path / "out").read_text()
  assert "Hard questions" in text
  assert "10 (50%)" in text


def test_a_run_without_a_buffer_has_no_such_section(tmp_path):
  comparison = compare(load([reward_workdir(tmp_path / "a")]))
  assert buffers.history_rows(comparison.arms) == buffers.asked_rows(comparison.arms) == []


@pytest.mark.parametrize(
  "history", [[], {"entered": [1]}, {"entered": [1], "graduated": [0], "evicted": [0], "visits": ["0"]}]
)
def test_a_damaged_history_is_named(history, tmp_path):
  path = with_buffer(tmp_path / "a", buffer_history=history)
  with pytest.raises(InputError, match="for 'buffer_history', which has to be counts of a buffer by tier"):
    load([path])
