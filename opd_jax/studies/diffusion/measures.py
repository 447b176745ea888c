"""What the study measures beside its curves: pass@k of the trained students, and what a shown future is worth before training."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data import pipeline
from opd_jax.evaluation.single_turn import Evaluator, pass_at_k
from opd_jax.rollout.denoise import DenoiserConfig
from opd_jax.rollout.generate import decode
from opd_jax.runtime import hosts, keys
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.diffusion.arms import ARMS, CANVAS, RHO
from opd_jax.studies.run import config_of, digest, measure

TRIES = 8
ASKED = {"eval.prompts": 256, "eval.batch": 256, "eval.k": TRIES, "eval.pass_at": (1, TRIES), "eval.greedy": False}
ASKED_ARMS = ("d-opsd", "samples", "reward", "all-masks", "long")
ANSWERS = 16  # to a problem, of which the first right one is finished again
CHECKED = 256  # problems of the teacher check
EMPTY = "."  # a cell of a sudoku's prompt, which stands where the answer has it


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Ask the students of some arms for several answers, and check the teacher; arguments as of `ask_all`."""
  arms, seeds = [arm for arm in arms if arm.name in ASKED_ARMS], list(seeds)
  students.ask_all(measure_student, arms, seeds, out, changes, settings=ASKED)
  settings = {"answers": ANSWERS, "checked": CHECKED, "rho": RHO, "of": "empty cells"}
  arm = next(arm for arm in ARMS if arm.name == "d-opsd")
  for seed in seeds:
    config = config_of(arm, seed, out, changes)
    measure(out, "teacher-check", seed, digest([config], settings), functools.partial(check_teacher, config))


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure pass@k of one student, sampled at temperature 1.

  Args:
    path: the run's workdir; None: the student before training.
  """
  student = students.load(config, path)
  asked = configs.override(student.config, ASKED)
  generator = functools.partial(student.recipe.generator, "student")
  evaluator = Evaluator(asked, student.evaluation(asked), student.params, program_cache, generator)
  found = evaluator(student.params)[0]
  return {"pass": {k: value["value"] for k, value in found["pass"].items()}}


def check_teacher(config: Config) -> dict[str, Any]:
  """Let the student before training finish its own right answers, of which a share of positions is given.

  Returns:
    answers: problems with a right answer. By share: not_given, the share of the empty cells that are not given and become
    the answer's; right, the share of the answers that the verifier accepts.
  """
  student = students.load(config, None)
  asked = configs.override(config, {"eval.prompts": CHECKED, "eval.k": 1})
  evaluation = student.evaluation(asked)
  denoiser = student.recipe.generator(
    "student", evaluation.generator_config, student.tokenizer, batch=CHECKED, prompt_lens=(), max_tokens=CANVAS
  ).config
  assert isinstance(denoiser, DenoiserConfig)
  problems, rows = evaluation.problems, meshes.rows(student.mesh)
  batch = pipeline.pad(problems.ids, pipeline.padded_len(problems.ids), denoiser.sampling.pad_id)
  run = jax.jit(functools.partial(denoiser.rollout, response_len=CANVAS), static_argnames="n", out_shardings=rows)
  key = keys.of_seed(config.seed, keys.Use.ANALYSIS)

  def right(rollout: Any, answers: list[str]) -> np.ndarray:
    texts = decode(
      student.tokenizer, np.asarray(rollout.response), np.asarray(rollout.mask), denoiser.sampling.stop_ids
    )
    ended = np.asarray(rollout.ended)
    return np.array(
      [evaluation.verify(t, a, ended=bool(e)) for t, a, e in zip(texts, answers, ended, strict=True)], bool
    )

  tried = jax.device_get(run(student.params, hosts.to_global(batch, rows), key, n=ANSWERS))
  repeated = [answer for answer in problems.answers for _ in range(ANSWERS)]
  solved = right(tried, repeated).reshape(-1, ANSWERS)
  has_answer: np.ndarray = np.asarray(solved.any(axis=1))
  chosen = np.argmax(solved, axis=1) + ANSWERS * np.arange(len(solved))
  own = tried.response[chosen]
  empty = np.zeros(own.shape, bool)
  for row, prompt in enumerate(problems.prompts):
    empty[row, : len(prompt)] = [cell == EMPTY for cell in str(prompt)]
  counted = empty & has_answer[:, None]
  mask_id = student.model.cfg.mask_id
  assert mask_id is not None
  shares = {}
  for i, rho in enumerate(RHO):
    given = jax.random.uniform(jax.random.fold_in(key, i), own.shape) < rho
    start = jnp.where(given, own, mask_id)
    again = jax.device_get(
      run(student.params, hosts.to_global(batch, rows), jax.random.fold_in(key, 100 + i), start=start)
    )
    asked_for = counted & ~np.asarray(given)
    accepted = right(again, problems.answers)[has_answer]
    shares[f"{rho:g}"] = {
      "not_given": float(np.mean((again.response == own)[asked_for])),
      "right": float(np.mean(accepted)),
    }
  each = solved.sum(axis=1)
  passed = {str(k): float(np.mean([pass_at_k(ANSWERS, int(c), k) for c in each])) for k in (1, 8)}
  return {"answers": int(has_answer.sum()), "pass": passed, "shares": shares}
