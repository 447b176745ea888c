"""The report's section on hard questions: the buffer's history by tier, and what prompts with candidates came to."""

import base64
import json

import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.reports import buffer_figures, buffers, page, plotting
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


@pytest.mark.long
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


def drawn(ax) -> dict:
  """The numbers of every line of a panel, by its colour and marker."""
  lines = [line for line in ax.get_lines() if len(line.get_xdata())]
  assert all(list(line.get_xdata()) == list(range(1, 21)) for line in lines)
  return {(line.get_color(), line.get_marker()): line.get_ydata() for line in lines}


def test_the_buffer_is_drawn_by_step(tmp_path):
  """Of two runs the mean, and an arm without a buffer has no line and leaves the others their colours."""
  paths = [reward_workdir(tmp_path / "none", config={"optimizer": {"lr": 0.5}}), with_buffer(tmp_path / "a")]
  history = {"entered": [9, 0, 0], "graduated": [1, 0, 0], "evicted": [2, 0, 0], "visits": [0, 0, 0]}
  paths.append(with_buffer(tmp_path / "b", buffer_history=history))
  arms = compare(load([paths[0], paths[1]])).arms
  figure = buffer_figures.buffer(arms)
  assert figure is not None
  assert [ax.get_title() for ax in figure.axes] == ["In the buffer", "Entered", "Graduated", "Evicted"]
  (style,) = (style for arm, style in plotting.styled(arms) if buffers.history_rows([arm]))
  steps = np.arange(1, 21)
  expected = [steps + 2 - steps // 2 - 1, steps + 2, steps // 2, np.ones(20)]
  for ax, of_steps in zip(figure.axes, expected, strict=True):
    lines = drawn(ax)
    assert list(lines) == [(style.color, style.marker)]
    np.testing.assert_array_equal(lines[style.color, style.marker], of_steps)
  figure = buffer_figures.buffer(compare(load([paths[1], paths[2]])).arms)
  assert figure is not None
  entered = [np.asarray(line.get_ydata())[-1] for line in figure.axes[1].get_lines()]
  assert entered == [22, 9, (22 + 9) / 2], "two runs, and their mean"


@pytest.mark.long
def test_the_buffer_is_drawn_by_tier(tmp_path):
  paths = [with_buffer(tmp_path / "a"), reward_workdir(tmp_path / "none", config={"optimizer": {"lr": 0.5}})]
  comparison = compare(load(paths))
  figure = buffer_figures.tiers(comparison.arms)
  assert figure is not None
  assert [ax.get_title() for ax in figure.axes] == list(buffer_figures.TITLES.values()), "one arm has a buffer"
  steps, ones = np.arange(1, 21), np.ones(20)
  expected = [[steps - steps // 2, ones], [steps, 2 * ones], [steps // 2, 0 * ones], [0 * ones, ones]]
  for ax, of_tiers in zip(figure.axes, expected, strict=True):
    lines = drawn(ax)
    assert len(lines) == 2, "a tier in which nothing entered has no line"
    for line, of_tier in zip(lines.values(), of_tiers, strict=True):
      np.testing.assert_array_equal(line, of_tier)
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["0 right at entry", "1 right at entry"]
  text = page.write(comparison, tmp_path / "out").read_text()
  for name, title, *_ in buffer_figures.listed(comparison.arms):
    picture = (tmp_path / "out" / f"{name}.png").read_bytes()
    assert base64.b64encode(picture).decode() in text
    assert title in text


@pytest.mark.long
def test_a_buffer_that_nothing_entered_has_no_picture(tmp_path):
  nothing = {key: [0, 0, 0] for key in ("entered", "graduated", "evicted", "visits")}
  paths = [with_buffer(tmp_path / "a", buffer_history=nothing), reward_workdir(tmp_path / "b")]
  for path in paths:
    comparison = compare(load([path]))
    assert [figure for *_, figure in buffer_figures.listed(comparison.arms)] == [None, None]
  page.write(comparison, tmp_path / "out")
  assert not list((tmp_path / "out").glob("buffer*.png"))
