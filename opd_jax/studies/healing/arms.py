"""A real language model is pruned, and healed from the original: are full rollouts necessary? After arXiv:2605.31490.

The student is the model with some layers left out or its weights rounded (--drop-layers, --bits), the teacher the same model as it was.
Seed by seed all arms read the same prompts in the same order: instructions of several kinds, easy word problems, and those of --data.
Lengths are shares of T = 256 tokens.

Every arm has about as many FLOPs: a step's cost goes with the tokens that are read and written, `PROMPT` of a prompt and the horizon (a pruned student ends
hardly an answer by itself), so that an arm of short rollouts makes more steps of `ROWS` rollouts each. What rollouts cost is seen only in the
run, and so is what `look` chooses: claims compare two arms at the FLOPs, counted, of the one that spent less, between checkpoints by a line. More steps are more
updates as well, which "opd-few-rows" tells apart: OPD of one rollout a step, with about the steps of TOPD 10%. One arm has twice the steps at 25%. The null has no teacher to read
and spends less; imitation is charged with a reading by the teacher that it does not need. Only seconds would need a machine of its own, and none are claimed.

The rate was calibrated on seed 10 of SmolLM2-135M-Instruct without its layers 20 to 23: divergence on own answers, and on the original's, after 6 steps of OPD at 1e-4
.580 and 1.384, at 3e-4 .578 and 1.244; after 24 steps of TOPD 10% .737 and 1.188, .756 and 1.279. All arms have a rate between the two, which are hardly apart.
The rules by which claims are judged stand in claims.py.
"""

import pathlib
import shutil
from statistics import fmean
from typing import Any

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.models import directory as directories
from opd_jax.models import pruning
from opd_jax.runtime import json_files
from opd_jax.studies.arm_spec import NULL, ArmSpec
from opd_jax.studies.healing import prompts

FIRST_SEED = 20  # those before it are to calibrate on
T, ROWS, LR = 256, 4, 2e-4
FULL_STEPS = 12  # of OPD
PROMPT = 64  # tokens of the study's longest prompt, to which all are padded, about
FEW_ROWS = 1
WARMUP = 2  # updates, of every arm
MEASURED = 2  # times in a run
BASE: dict[str, Any] = {
  "horizon.max": T,
  "batch": ROWS,
  "rollouts_per_prompt": 1,
  "optimizer.lr": LR,
  "optimizer.warmup": WARMUP,
  "data.widths": 0.0,
  "data.on_bad_line": "skip",
  "eval.prompts": 4,  # a run has to have an evaluation; what counts is measured afterwards, see measures.py
  "eval.batch": 4,
  "eval.max_tokens": 8,
  "checkpoint.keep": 3 * MEASURED,  # a run that is stopped saves others between those that are measured
  "log.bins": 16,
  "log.samples": 0,
  "log.tensorboard": False,
}
RATIOS = {0.0625: "6", 0.1: "10", 0.25: "25", 0.5: "50"}
TO_T: dict[str, Any] = {"horizon.kind": "progressive", "horizon.start": 16, "horizon.growth": 80, "horizon.quantum": 16}
TO_HALF: dict[str, Any] = {
  "horizon.kind": "progressive",
  "horizon.start": 16,
  "horizon.growth": 32,
  "horizon.quantum": 16,
}
STAIRS = 4  # of both
LOOK: dict[str, Any] = {"horizon.kind": "look", "horizon.start": 16, "horizon.every": 8}


def cost(*horizons: float) -> float:
  """What a step costs, as a share of OPD's; the mean over several horizons."""
  return (PROMPT + fmean(horizons)) / (PROMPT + T)


def steps_for(*horizons: float, times: float = 1.0) -> int:
  """The steps of an arm with these horizons, a multiple of `STAIRS`, and so of `MEASURED`."""
  return max(1, round(times * FULL_STEPS / cost(*horizons) / STAIRS)) * STAIRS


def arm(name: str, label: str, changes: dict[str, Any], steps: int) -> ArmSpec:
  every = steps // MEASURED
  return ArmSpec(name, label, changes | {"steps": steps, "eval.every": steps, "checkpoint.every": every}, BASE)


def full(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm whose rollouts may have T tokens."""
  return arm(name, label, {"horizon.kind": "full"} | changes, steps_for(T))


def truncated(name: str, label: str, ratio: float, times: float = 1.0) -> ArmSpec:
  changes = {"horizon.kind": "truncated", "horizon.ratio": ratio, "horizon.quantum": 1}
  return arm(name, label, changes, steps_for(ratio * T, times=times))


def stairs(name: str, label: str, changes: dict[str, Any]) -> ArmSpec:
  """An arm whose horizon grows, a quarter of the steps on each stair."""
  heights = [min(T, changes["horizon.start"] + i * changes["horizon.growth"]) for i in range(STAIRS)]
  steps = steps_for(*heights)
  return arm(name, label, changes | {"horizon.every": steps // STAIRS}, steps)


ARMS: tuple[ArmSpec, ...] = (
  full("opd", "OPD", {}),
  arm(
    "opd-few-rows",
    "OPD, a rollout a step",
    {"horizon.kind": "full", "batch": FEW_ROWS},
    steps_for(T, times=ROWS / FEW_ROWS),
  ),
  *(truncated(f"topd-{name}", f"TOPD {name}%", ratio) for ratio, name in RATIOS.items()),
  truncated("topd-25-long", "TOPD 25%, 2x the steps", 0.25, 2),
  stairs("popd", "POPD to T", TO_T),
  stairs("popd-half", "POPD to .44 T", TO_HALF),
  arm("look", "adaptive: look", LOOK, steps_for(0.25 * T)),
  full("forward", "forward KL", {"objective.kind": "forward_kl"}),
  full(
    "sft",
    "SFT on the teacher's answers",
    {
      "rollout.by": "teacher",
      "objective.support": "sampled",
      "objective.kind": "forward_kl",
      "objective.estimator": "nll",
    },
  ),
  full("null", "the null: rare tokens suppressed", NULL | {"teacher": ""})._replace(keeps=("teacher",)),
)
LABELS = {each.name: each.label for each in ARMS}
SHORT = ("opd", "opd-few-rows", "topd-10", "topd-25", "popd")


def prepare(out: pathlib.Path, model: str, drop: str, bits: int, data: str) -> dict[str, Any]:
  """Make the pruned model and the prompts of a study, once, and return what they change in every config.

  Args:
    model: the directory of the original.
    drop: layers to leave out, "20-23"; "": none.
    bits: of the rounded matrices; 0: they stay.
    data: a file of more prompts, which is drawn from as often as the study's own; "". Prompts longer than these are left out.

  Raises:
    InputError: nothing is pruned, there is no such model, or `out` holds a study of another one.
  """
  if not model:
    raise InputError(
      "The study healing needs a model: --model=DIR, and what is pruned of it, --drop-layers=20-23 or --bits=3."
    )
  if not drop and not bits:
    raise InputError(
      "Nothing is pruned of the model, so that there is nothing to heal: give --drop-layers=20-23, or --bits=3."
    )
  original, pruned = configs.expanded_path(model).resolve(), (out / "pruned").resolve()
  more = str(configs.expanded_path(data).resolve()) if data else ""
  asked = {"model": str(original), "drop_layers": drop, "bits": bits, "data": more}
  record = out / "healing.json"
  if record.is_file() and (before := json_files.load_object(record, "delete it")) != asked:
    raise InputError(
      f"{out} holds the study of another model or of other layers ({before}); give another --out, or the same flags."
    )
  if pruned.is_dir() and not record.is_file():  # killed before it was written what had been left out
    shutil.rmtree(pruned)
  if not pruned.is_dir():
    out.mkdir(parents=True, exist_ok=True)
    pruning.write(original, pruned, drop=pruning.layers_of(drop) if drop else (), bits=bits)
  directories.write_json(record, asked)
  prompts.write(out / "data")
  folder = (out / "data").resolve()
  paths = (str(folder / prompts.TRAINED), *([more] if more else []))
  return {
    "student": str(pruned),
    "teacher": str(original),
    "data.max_prompt": prompts.longest(folder / prompts.TRAINED, str(original)),
    "data.paths": paths,
    "data.weights": (1.0, 1.0) if more else (),
    "data.path": "",
    "eval.path": str(folder / prompts.PROBLEMS),
  }
