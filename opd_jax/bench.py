"""Speed and memory of the rollout and the update, against what this machine can do and against other libraries.

    python -m opd_jax.bench                                                   rollout and update of configs/popd.py
    python -m opd_jax.bench rollout --batch=16,64 --prompt=16 --horizon=128,512 --out=bench
    python -m opd_jax.bench --config=configs/opd.py:hf --student=Qwen3-0.6B/config.json --teacher=DIR --horizon=512
    python -m opd_jax.bench --batch=2,8 --n=1,16 --prompt=32,512              2 and 8 prompts, 1 and 16 rollouts of each
    python -m opd_jax.bench rollout --against=transformers                    the rollout, beside transformers' generate
    python -m opd_jax.bench --against=trl --against-python=VENV/bin/python    a step, beside TRL's DistillationTrainer
    python -m opd_jax.bench --smallest                                        a tiny model, in seconds
    python -m opd_jax.bench objectives --help                                 objectives, fused against dense
    python -m opd_jax.bench lengths --help                                    rows of unequal length
    python -m opd_jax.bench int8 --help                                       what int8 does to a teacher
    python -m opd_jax.bench delta-rule --help                                 the gated delta rule of Qwen3.5 by length

Weights are random, nothing stops early, and of a model only config.json is read: any Qwen3, Qwen2.5 or Llama-3 shape
is measured without a download. The sizes are lists, and every combination of them is measured. Keys of the config are
overridden as in training (--config.remat=layer).

Seconds are medians and the least of the repeats. The roofline is the least time that the counted FLOPs and bytes
(models/roofline.py) need at the rates measured on the machine (runtime/machine.py); the fraction is roofline
over least seconds. Compile seconds are of XLA alone, without a compile cache unless JAX_COMPILATION_CACHE_DIR is set.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.runtime import cli

PARTS = ("rollout", "update")


def define(values: flags.FlagValues) -> None:
  """Adds the benchmark's own flags."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text("student", None, "instead of config.student: a model directory, or a config.json of any name")
  text("teacher", None, "instead of config.teacher(s): likewise")
  text("batch", None, "prompts of a step, one number or several (config.batch)")
  text("n", None, "rollouts of each prompt, one number or several (config.rollouts_per_prompt)")
  text("prompt", None, "tokens of a prompt, one number or several (16)")
  text("horizon", None, "tokens of a response, one number or several (config.horizon.max)")
  flags.DEFINE_integer("repeat", None, "timed repeats after one that warms up (5)", flag_values=values)
  text("out", None, "a directory for bench.json, bench.txt and prefix.png")
  text("against", None, "time the same work in another library: transformers (the rollout), trl (a step)")
  text("against-python", None, "for --against=trl: the python of an environment that TRL is installed in")
  flags.DEFINE_bool("smallest", False, "tiny sizes where none are given: does it run?", flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark that the first argument names, rollout and update where it names none; returns the status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  command = " ".join(["python -m opd_jax.bench", *argv])
  cli.quiet()
  if argv[:1] == ["objectives"]:
    from opd_jax.benchmarks import objectives

    return objectives.main(argv[1:])
  if argv[:1] == ["lengths"]:
    from opd_jax.benchmarks import lengths

    return lengths.main(argv[1:])
  if argv[:1] == ["int8"]:
    from opd_jax.benchmarks import int8

    return int8.main(argv[1:])
  if argv[:1] == ["delta-rule"]:
    from opd_jax.benchmarks import delta_rule

    return delta_rule.main(argv[1:])
  with cli.reporting_the_end():
    parts = PARTS
    if argv and not argv[0].startswith("-"):
      if argv[0] not in PARTS:
        raise InputError(
          f"There is no benchmark {argv[0]!r}; there are {', '.join(PARTS)}, objectives, lengths, int8 and delta-rule."
        )
      parts = (argv.pop(0),)
    values, config = cli.parse(["bench", *argv], __doc__ or "", define, cli.of_method)
    run(values, config, parts, command)
  return 0


def run(values: flags.FlagValues, config: Config, parts: Sequence[str], command: str) -> None:
  """Checks everything before anything is compiled, measures, and shows and writes the record.

  Args:
    parts: of PARTS, those to measure.
    command: the command line, for the record.
  """
  from opd_jax.benchmarks import against, against_trl, results
  from opd_jax.benchmarks.subject import Subject

  c = configs.override(config, cli.model_overrides(values.student, values.teacher))
  if "rollout" in parts and c.rollout.by != "student":
    raise InputError(
      f"config.rollout.by is {c.rollout.by!r}, but the rollout that is timed is the student's; bench update."
    )
  tiny = values.smallest
  default_repeat = 2 if tiny else 5
  repeat = default_repeat if values.repeat is None else values.repeat
  if repeat < 1:
    raise InputError(f"--repeat is {repeat}; it has to be at least 1.")
  cases = combinations(
    numbers("batch", values.batch, 4 if tiny else c.batch),
    numbers("n", values.n, c.rollouts_per_prompt),
    numbers("prompt", values.prompt, 8 if tiny else 16),
    numbers("horizon", values.horizon, 16 if tiny else c.horizon.max),
  )
  library, python = values.against, values["against-python"].value
  if library is not None:
    against.check_name(library)
  if library == "transformers":
    against.check(parts)
  if python is not None and library != "trl":
    raise InputError("--against-python is the interpreter of TRL; leave it out, or add --against=trl.")
  subject = Subject.load(c, smallest=tiny)
  for case in cases:
    subject.config(case)
  if library is not None and not is_distillation(subject.recipe(cases[0])):
    raise InputError(
      f"--against={library} compares steps of distillation, and config.recipe={c.recipe} has others; leave it out."
    )
  out = cli.output_directory(values.out) if values.out else None
  trl = against_trl.check(c, parts, python) if library == "trl" else None
  parts = (*parts, library) if library else parts
  record = describe(subject, command, repeat) | measure(subject, cases, parts, repeat, small=tiny, trl=trl)
  results.show(record)
  if out:
    print("wrote " + ", ".join(map(str, results.write(record, out))))


def measure(
  subject, cases: list, parts: Sequence[str], repeat: int, *, small: bool, trl: pathlib.Path | None = None
) -> dict[str, Any]:
  """Measures the machine, and each part for every case.

  Rollout, then the other library, then update, which donates the parameters.

  Args:
    parts: of PARTS, and the library that is measured beside them.
    trl: the interpreter that runs TRL.
  """
  from rich.console import Console

  from opd_jax.benchmarks import against, against_trl, rollout, update
  from opd_jax.benchmarks import programs as generic
  from opd_jax.runtime import machine, metrics

  if not is_distillation(subject.recipe(cases[0])):
    found = [record for case in cases for record in generic.measure(subject, case, repeat)]
    rates = machine.measure(subject.dtype, repeat, small=small).as_json()
    return {"machine": rates, "programs": found, "process_peak_bytes": metrics.peak_memory()}
  progress = Console(stderr=True, highlight=False)

  def announce(what: str) -> None:
    progress.print(f"  measuring {what}", soft_wrap=True)

  record: dict[str, Any] = {part if part in PARTS else "against": [] for part in parts}
  announce("the machine")
  rates = machine.measure(subject.dtype, repeat, small=small)
  params, programs, trl_steps = subject.params(), {}, []
  if "rollout" in parts:
    for case in cases:
      announce(f"the rollout of {case}")
      programs[case] = rollout.program(subject, case, params)
      record["rollout"].append(rollout.measure(subject, case, params, programs[case], rates, repeat))
  if "transformers" in parts:
    theirs = against.TransformersModel(subject, params)
    for case in cases:
      announce(f"transformers on {case}")
      record["against"].append(theirs.measure(subject, case, params, programs[case][0], repeat))
  if trl is not None:
    with against_trl.TrlSteps(subject, params, trl) as steps:
      for case in cases:
        announce(f"TRL on {case}")
        trl_steps.append(steps.measure(case, repeat))
  if "update" in parts:
    del params
    recipe = subject.recipe(cases[0])
    state, frozen_models = recipe.init(), recipe.frozen()
    for case in cases:
      announce(f"the update of {case}")
      measured, state = update.measure(subject, case, state, frozen_models, rates, repeat)
      record["update"].append(measured)
  if set(PARTS) <= set(parts):
    pairs = list(zip(record["rollout"], record["update"], strict=True))
    record["step"] = [step(rollout_record, update_record) for rollout_record, update_record in pairs]
    if trl is not None:
      compared = zip(cases, trl_steps, pairs, strict=True)
      record["against"] = [against_trl.compare(case, theirs, *ours) for case, theirs, ours in compared]
  return {"machine": rates.as_json(), **record, "process_peak_bytes": metrics.peak_memory()}


def is_distillation(recipe) -> bool:
  """Tells whether a recipe's step is a rollout and an update as training/distillation.py has them."""
  from opd_jax.training.distillation import DistillationStep

  return isinstance(getattr(recipe, "step", None), DistillationStep)


def combinations(*sizes: list[int]) -> list:
  """Lists every `subject.Case` of these batches, rollouts of each prompt, prompts and horizons."""
  from opd_jax.benchmarks.subject import Case

  return [Case(batch, prompt, horizon, n) for batch, n, prompt, horizon in itertools.product(*sizes)]


def numbers(name: str, text: str | None, default: int) -> list[int]:
  """Parses the sizes of --NAME without repetitions, each at least 1.

  Raises:
    InputError: for what is no list of such numbers.
  """
  try:
    sizes = [int(part) for part in (text if text is not None else str(default)).split(",")]
  except ValueError:
    sizes = []
  if not sizes or min(sizes) < 1:
    raise InputError(f"--{name}={text} is not a list of whole numbers above 0; write it as --{name}=16,64.")
  return list(dict.fromkeys(sizes))


def step(rollout: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
  """Makes the record of a step, in which the rollout and the update run one after the other."""
  both = {key: rollout[key] + update[key] for key in ("seconds", "min_seconds", "roofline_seconds")}
  return {
    **{key: rollout[key] for key in ("batch", "n", "rows", "prompt", "horizon")},
    **both,
    "tokens_per_second": rollout["rows"] * rollout["horizon"] / both["seconds"],
    "fraction_of_roofline": both["roofline_seconds"] / both["min_seconds"],
  }


def describe(subject, command: str, repeat: int) -> dict[str, Any]:
  """Describes command, versions, device and models, for the record."""
  import jax

  from opd_jax.models import roofline
  from opd_jax.runtime import machine, workdir

  def model(name: str, cfg) -> dict[str, Any]:
    return {"name": name, "parameters": roofline.parameter_count(cfg), **cfg.to_dict()}

  return {
    "command": command,
    **workdir.provenance(),
    "device_kind": jax.devices()[0].device_kind,
    "processor": machine.processor(),
    "cores": machine.cores(),
    "dtype": subject.dtype.name,
    "repeat": repeat,
    "compile_cache": jax.config.values["jax_compilation_cache_dir"],
    "student": model(subject.names[0], subject.student),
    "teachers": [model(name, cfg) for name, cfg in zip(subject.names[1:], subject.teachers, strict=True)],
  }


if __name__ == "__main__":
  sys.exit(main())
