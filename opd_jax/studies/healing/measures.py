"""What the study measures of its students at every checkpoint: how far they are from the original model, and how they speak."""

import functools
import itertools
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.analysis import loaded, notebook, score
from opd_jax.analysis.loaded import Model
from opd_jax.config import Config
from opd_jax.data.scored import ScoredResponse
from opd_jax.errors import InputError
from opd_jax.evaluation import make_evaluator
from opd_jax.runtime import json_files
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies import students
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.healing import prompts
from opd_jax.studies.healing.arms import T
from opd_jax.studies.results import workdir

ASKED = 16  # held-out instructions, each answered once at temperature 1
EDGES = (0, 16, 26, 64, 128, 192, T)  # of the bins of positions
REPEATED = 4  # tokens that are repeated together
WORD_PROBLEMS: dict[str, Any] = {
  "eval.prompts": 50,
  "eval.batch": 50,
  "eval.max_tokens": 48,
  "eval.k": 1,
  "eval.temperature": 1.0,
  "eval.greedy": True,
}


SETTINGS = [ASKED, EDGES, REPEATED, WORD_PROBLEMS]


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Measure the students of all finished runs; arguments as of `students.ask_all`."""
  students.ask_all(measure_student, arms, seeds, out, changes, settings=SETTINGS)


def after_run(arm: ArmSpec, seed: int, out: pathlib.Path, changes: dict[str, Any] | None = None) -> None:
  """Measure a finished run, unless that is done, and delete its checkpoints but the last: with AdamW's moments one is six times a model in bf16."""
  students.ask_all(measure_student, [arm], [seed], out, changes, untrained=False, settings=SETTINGS)
  saved = (path for path in (workdir(out, arm.name, seed) / "checkpoints").iterdir() if path.name.isdigit())
  for checkpoint in sorted(saved, key=lambda path: int(path.name))[:-1]:
    shutil.rmtree(checkpoint)


class Asked(NamedTuple):
  """The held-out instructions, and the original model that answered them."""

  teacher: Model
  prompts: list[list[int]]
  answers: list[list[int]]  # the teacher's


@functools.lru_cache(maxsize=1)  # of several seeds each would hold an original
def _asked(student: str, teacher: str, path: str, seed: int) -> Asked:
  """Load the original model and let it answer, once for all students of a process."""
  model = loaded.load_model(teacher)
  records = [json_files.parse(line)["prompt"] for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()]
  ids = notebook.render_prompts(loaded.load_model(student), records[:ASKED], None)
  return Asked(model, ids, score.respond(model, ids, T, 1.0, seed))


def measure_student(config: Config, path: pathlib.Path | None, program_cache: ProgramCache) -> dict[str, Any]:
  """Measure one student before training, or at every checkpoint of its run.

  Args:
    path: the run's workdir; None: the student before training.

  Returns:
    "steps": of each checkpoint what `own_answers` measures, with its "step", and of the last what `teachers_answers` does too.
    "word_problems": after the last step, the share of the word problems that are right, "sampled" at temperature 1 and "greedy".

  Raises:
    InputError: the checkpoints of a finished run are deleted, since it was measured before.
  """
  every, found, last = config.checkpoint.every, [], None
  for step in [0] if path is None else range(every, config.steps + 1, every):
    if path is None:
      last = loaded.load_directory(config.student)
    elif (path / "checkpoints" / str(step)).is_dir():
      last = loaded.load_model(path, step=step)
    else:
      raise InputError(
        f"The checkpoint of step {step} of {path} is deleted, and the measurement of it is not there or is of other settings; delete {path} to "
        "train it again."
      )
    found.append({"step": step} | own_answers(config, last))
  assert last is not None
  found[-1] |= teachers_answers(config, last)
  return {"steps": found, "word_problems": _word_problems(config, last, program_cache)}


def teachers_answers(config: Config, student: Model) -> dict[str, Any]:
  """Measure how a student finds what the original model answers.

  Returns:
    "forward_kl", an estimate of KL(original || student): the original's log-probability of its own tokens less the student's, in nats a token;
    "agreement", the share of them at which both models' likeliest is the same; and of the "original" its own "repeated" and "ended", see `own_answers`.
  """
  asked = _of_study(config)
  found = score.score_ids(student, asked.teacher, asked.prompts, asked.answers, k=1)
  return {
    "forward_kl": float(np.mean(np.concatenate([_numbers(r.teacher_logprob) - _numbers(r.logprob) for r in found]))),
    "agreement": float(np.mean([same for each in found for same in agreeing(each)])),
    "original": _manner(asked.answers, found),
  }


def _manner(answers: Sequence[Sequence[int]], responses: Sequence[ScoredResponse]) -> dict[str, float]:
  return {
    "length": float(np.mean([len(row) for row in answers])),
    "ended": float(np.mean([each.ended for each in responses])),
    "repeated": float(np.mean([here for row in answers for here in repeats(row)])),
  }


def own_answers(config: Config, student: Model) -> dict[str, Any]:
  """Measure one student on its own answers of at most T tokens.

  Returns:
    Means over their tokens: "kl", the reverse KL to the original model in nats, "by_position" the same in the bins of EDGES with "tokens" of each.
    Also the mean "length", the share that "ended" by a stop token, and the share of tokens that are "repeated".
  """
  asked = _of_study(config)
  own = score.respond(student, asked.prompts, T, 1.0, config.seed)
  of_own = score.score_ids(student, asked.teacher, asked.prompts, own, k=0)
  by_position, counts = binned([_numbers(each.divergence) for each in of_own])
  return {
    "kl": float(np.mean(np.concatenate([_numbers(each.divergence) for each in of_own]))),
    "by_position": by_position,
    "tokens": counts,
  } | _manner(own, of_own)


def _of_study(config: Config) -> Asked:
  folder = pathlib.Path(config.eval.path).parent
  original = json_files.load_object(folder.parent / "healing.json", "run the study again")["model"]
  return _asked(config.student, original, str(folder / prompts.ASKED), config.seed)


def _numbers(values: Any) -> np.ndarray:
  return np.array(values, float)


def binned(rows: Sequence[np.ndarray]) -> tuple[list[float | None], list[int]]:
  """Average over the tokens of each bin of EDGES, over all rows; None where no row has one. Also the tokens of each."""
  means: list[float | None] = []
  counts: list[int] = []
  for first, end in itertools.pairwise(EDGES):
    here = np.concatenate([row[first:end] for row in rows])
    means.append(float(here.mean()) if len(here) else None)
    counts.append(len(here))
  return means, counts


def agreeing(response: ScoredResponse) -> list[bool]:
  """Tell of each token whether both models' likeliest there is the same."""
  pairs = zip(response.student_top or (), response.teacher_top or (), strict=True)
  return [ours[0][0] == theirs[0][0] for ours, theirs in pairs]


def repeats(row: Sequence[int]) -> list[bool]:
  """Tell of each token whether it ends REPEATED tokens that stood together in the row before."""
  seen: set[tuple[int, ...]] = set()
  found = []
  for end in range(1, len(row) + 1):
    gram = tuple(row[max(0, end - REPEATED) : end])
    found.append(len(gram) == REPEATED and gram in seen)
    seen.add(gram)
  return found


def _word_problems(config: Config, student: Model, program_cache: ProgramCache) -> dict[str, float]:
  asked = configs.override(config, WORD_PROBLEMS)
  problems = inputs.load_evaluation(asked, student.spec, student.tokenizer, student.mesh, student.spec.cfg.vocab)
  record = make_evaluator(asked, problems, student.params, program_cache)(student.params)[0]
  return {"sampled": record["accuracy"], "greedy": record["greedy"]["accuracy"]}
