"""Where d-OPSD compares student and teacher on the built-in sudokus: docs/diffusion.md has the numbers that are printed here."""

import numpy as np
import pytest

from opd_jax.data import denoised
from opd_jax.studies.diffusion import arms
from opd_jax.trainer import train

CELLS = 16


def compared_of(arm: str, path) -> tuple[float, float]:
  """Return the mean divergence of accepted answers before training, and the share of K on given cells or behind the answer."""
  spec = next(each for each in arms.ARMS if each.name == arm)
  few = {"steps": 1, "eval.every": 0, "log.rollouts": arms.PROMPTS, "compile_cache": "off"}
  train(spec.config(10, few), path)
  divergence, given = [], []
  for response in denoised.read(path / denoised.FILE):
    if response.learned:
      for at in response.divergence:
        divergence.append(np.mean(np.array(list(at.values()), float)))
        given += [i >= CELLS or response.prompt[i] != "." for i in at]
  return float(np.mean(divergence)), float(np.mean(given))


@pytest.mark.long
def test_of_the_whole_canvas_the_teacher_is_surest_of_what_teaches_nothing(tmp_path):
  found = {arm: compared_of(arm, tmp_path / arm) for arm in ("d-opsd", "canvas")}
  print(found)
  (within, given), (over_all, given_over_all) = found.values()
  assert within > 5 * over_all
  assert given_over_all > 0.6 > given
