"""What a run prints of its records."""

import io

import pytest
from rich.console import Console

from opd_jax.runtime import metrics
from opd_jax.runtime.metrics import ProgressBar

RECORD = {"step": 2, "accuracy": 0.5, "low": 0.1, "high": 0.9, "k": 1, "prompts": 4, "length": {"mean": 7.0}}
RECORD |= {"elapsed": 1.0, "tokens": 10, "ended": 1.0}
STEP = {"step": 4, "step_tokens": 1000, "seconds": {"rollout": 1.0, "compile": 0.0}, "loss": 0.25, "limit": 256}
STEP |= {"elapsed": 4.0}
REWARD = {"reward": 0.4375, "teaching_groups": 0.75}


def line(capsys, step: dict, name: str = "run") -> str:
  """What is printed of a last step where there is no terminal."""
  bar = ProgressBar(4, 0, name)
  bar.step(step)
  bar.close()
  return capsys.readouterr().err.removesuffix("\n")


def test_a_step_with_a_teacher_shows_what_it_always_did(capsys):
  assert line(capsys, STEP | {"kl": 0.5}) == "run step 4/4 loss 0.2500 kl 0.5000 horizon 256 1,000 tokens/s left 0 s"


def test_a_step_without_a_teacher_shows_its_reward_and_the_groups_that_teach(capsys):
  shown = line(capsys, STEP | REWARD)
  assert shown == "run step 4/4 loss 0.2500 reward 0.438 teaching 75% horizon 256 1,000 tokens/s left 0 s"
  assert "teaching" not in line(capsys, STEP | {"reward": 0.5})
  assert "kl" not in line(capsys, STEP | {"kl": None, "reward": 0.5})


@pytest.mark.parametrize("name", ["run", "a-name-of-thirty-six-characters-here", "a-longer-name-than-others" * 2])
def test_a_line_with_a_reward_leaves_out_what_does_not_fit(capsys, name):
  shown = line(capsys, STEP | REWARD | {"kl": 0.5, "limit": 32768, "step_tokens": 10**7}, name)
  assert len(shown) <= ProgressBar.LINE
  assert "reward 0.438 teaching 75%" in shown


def test_a_bar_with_a_reward_fits_the_terminal(monkeypatch):
  """Rich cuts a text that does not fit into the bar's line, and what is cut is the end."""
  out = io.StringIO()
  terminal = Console(file=out, force_terminal=True, width=84, color_system=None)
  monkeypatch.setattr(metrics, "Console", lambda **_: terminal)
  bar = ProgressBar(100, 0, "run")
  bar.step(STEP | REWARD | {"kl": 0.5})
  bar.close()
  (shown,) = {text.split("loss")[-1] for text in out.getvalue().splitlines() if "4/100" in text}
  assert "reward 0.438 teaching 75%" in shown
  assert "…" not in shown


@pytest.mark.parametrize("cut", [0, 3])
def test_an_evaluation_says_how_many_prompts_lost_their_beginning(capsys, cut):
  bar = ProgressBar(4, 0, "run")
  bar.evaluation(RECORD | ({"prompts_cut": cut} if cut else {}))
  bar.close()
  assert ("prompts that lost their beginning: 3" in capsys.readouterr().err) == bool(cut)


def test_a_line_with_brackets_is_printed_as_it_is(capsys):
  bar = ProgressBar(4, 0, "run")
  bar.say("  a prompt: '[bold]x[/y] :smile:'")
  bar.close()
  assert capsys.readouterr().err == "  a prompt: '[bold]x[/y] :smile:'\n"


class Shown:
  """A cell's output: what stands in it now, and how often it was written."""

  def __init__(self):
    self.text, self.times = "", 0

  def display(self, shown, display_id):
    assert display_id is True
    self.update(shown)
    return self

  def update(self, shown):
    self.text, self.times = shown.data, self.times + 1


@pytest.fixture
def cell(monkeypatch):
  display = pytest.importorskip("IPython.display")
  shown = Shown()
  monkeypatch.setattr(display, "display", shown.display)
  return shown


def test_a_notebook_has_one_bar_that_is_updated(cell, capsys):
  bar = metrics.NotebookBar(4, 0, "<run>")
  assert 'value="0" max="4"' in cell.text
  for step in (1, 2, 3):
    bar.step(STEP | {"step": step})
  assert cell.times <= 3  # not every step of a fast run
  bar.step(STEP)
  bar.evaluation(RECORD)
  bar.close()
  assert 'value="4" max="4"' in cell.text
  assert "&lt;run&gt; step 4/4 loss 0.2500 horizon 256 1,000 tokens/s" in cell.text
  assert "<run>" not in cell.text
  assert "accuracy 0.500" in capsys.readouterr().out


def test_a_notebook_tells_the_time_that_is_left(cell, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  bar = metrics.NotebookBar(10, 2, "run")
  now[0] += 8
  bar.step(STEP | {"step": 4})
  assert ", 8 s, 24 s left" in cell.text  # two steps took 8 seconds, and six are to come


def test_a_notebook_is_known_as_rich_knows_it(monkeypatch):
  import builtins

  shell = type("ZMQInteractiveShell", (), {})
  monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
  assert metrics.in_notebook()
  monkeypatch.setattr(builtins, "get_ipython", type("TerminalInteractiveShell", (), {}), raising=False)
  assert not metrics.in_notebook()
  monkeypatch.delattr(builtins, "get_ipython")
  assert not metrics.in_notebook()
