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
