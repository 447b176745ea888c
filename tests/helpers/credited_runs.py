"""Small runs that learn from rewards alone, in recipes that keep what they have collected until its credit is made."""

from typing import Any

SIZES: dict[str, Any] = {"batch": 4, "steps": 4, "eval.every": 0, "checkpoint.every": 1, "log.bins": 4}
SIZES |= {"log.tensorboard": False, "compile_cache": "off", "optimizer.lr": 1e-2, "optimizer.warmup": 0}
SIZES |= {"mixture.divergence": 0.0, "mixture.reward": 1.0, "surrogate.kind": "ppo_clip"}


def even(response: str, answer: str = "", **_) -> bool:
  """A verifier by which some responses are right: random weights never answer right."""
  return sum(map(ord, response)) % 2 == 0


def kept_credits(collected: str, run, monkeypatch) -> list:
  """Returns the list to which every step of a run is added: what it has collected, its experience and its credit.

  Args:
    collected: the attribute of the recipe that has the first of them by step.
  """
  found, credit = [], run.recipe._credit

  def kept(run, experience):
    of_step = getattr(run.recipe, collected)[experience.step]
    made = credit(run, experience)
    found.append((of_step, experience, made[0]))
    return made

  monkeypatch.setattr(run.recipe, "_credit", kept)
  return found
