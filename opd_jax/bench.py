"""Speed and memory of the rollout and the update, against what this machine can do and against PyTorch transformers.

    python -m opd_jax.bench                                                   rollout and update of configs/popd.py
    python -m opd_jax.bench rollout --batch=16,64 --prompt=16 --horizon=128,512 --out=bench
    python -m opd_jax.bench --config=configs/opd.py:hf --student=Qwen3-0.6B/config.json --teacher=DIR --horizon=512
    python -m opd_jax.bench rollout --against=transformers
    python -m opd_jax.bench --smallest                                        a tiny model, in seconds
    python -m opd_jax.bench objectives --help                                 objectives, fused against dense
    python -m opd_jax.bench int8 --help                                       what int8 does to a teacher

Weights are random, nothing stops early, and of a model only config.json is read: any Qwen3, Qwen2.5 or Llama-3 shape
is measured without a download. The sizes are lists, and every combination of them is measured. Keys of the config are
overridden as in training (--config.rollouts_per_prompt=4).

Seconds are medians and the least of the repeats. The roofline is the least time that the counted FLOPs and bytes
(benchmarks/roofline.py) need at the rates measured on the machine (benchmarks/machine.py); the fraction is roofline
over least seconds. Compile seconds are of XLA alone, without a compile cache unless JAX_COMPILATION_CACHE_DIR is set.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from opd_jax import cli
from opd_jax import config as configs
from opd_jax.errors import InputError

PARTS = ("rollout", "update")


def define(values: flags.FlagValues) -> None:
  text = lambda name, default, said: flags.DEFINE_string(name, default, said, flag_values=values)
  text("student", None, "instead of config.student: a model directory, or a config.json of any name")
  text("teacher", None, "instead of config.teacher(s): likewise")
  text("batch", None, "prompts of a step, one number or several (config.batch)")
  text("prompt", None, "tokens of a prompt, one number or several (16)")
  text("horizon", None, "tokens of a response, one number or several (config.horizon.max)")
  flags.DEFINE_integer("repeat", None, "timed repeats after one that warms up (5)", flag_values=values)
  text("out", None, "a directory for bench.json, bench.txt and prefix.png")
  text("against", None, "time the same rollouts in another library: transformers")
  flags.DEFINE_bool("smallest", False, "tiny sizes where none are given: does it run?", flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  command = " ".join(["python -m opd_jax.bench", *argv])
  cli.quiet()
  if argv[:1] == ["objectives"]:
    from opd_jax.benchmarks import objectives

    return objectives.main(argv[1:])
  if argv[:1] == ["int8"]:
    from opd_jax.benchmarks import int8

    return int8.main(argv[1:])
  try:
    parts = PARTS
    if argv and not argv[0].startswith("-"):
      if argv[0] not in PARTS:
        raise InputError(f"There is no benchmark {argv[0]!r}; there are {', '.join(PARTS)}, objectives and int8.")
      parts = (argv.pop(0),)
    values, c = cli.parse(["bench", *argv], __doc__ or "", define, cli.of_method)
    run(values, c, parts, command)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    return 130
  return 0


def run(values: flags.FlagValues, c, parts: Sequence[str], command: str) -> None:
  """Checks everything before anything is compiled, measures, and shows and writes the record."""
  from opd_jax.benchmarks import against, report
  from opd_jax.benchmarks.subject import Subject

  named = {"student": values.student, "teacher": values.teacher} | ({"teachers": ()} if values.teacher else {})
  c = configs.override(c, {key: name for key, name in named.items() if name is not None})
  if "rollout" in parts and c.rollout.by != "student":
    raise InputError(
      f"config.rollout.by is {c.rollout.by!r}, but the rollout that is timed is the student's; bench update."
    )
  tiny = values.smallest
  repeat = values.repeat if values.repeat is not None else 2 if tiny else 5
  if repeat < 1:
    raise InputError(f"--repeat is {repeat}; it has to be at least 1.")
  cases = combinations(
    numbers("batch", values.batch, 4 if tiny else c.batch),
    numbers("prompt", values.prompt, 8 if tiny else 16),
    numbers("horizon", values.horizon, 16 if tiny else c.horizon.max),
  )
  if values.against is not None:
    if "rollout" not in parts:
      raise InputError("--against times the rollout; leave out 'update', or --against.")
    against.check(values.against)
  subject = Subject.load(c, smallest=tiny)
  for case in cases:
    subject.config(case)
  out = report.open_(values.out) if values.out else None
  parts = (*parts, "against") if values.against else parts
  record = describe(subject, command, repeat) | measure(subject, cases, parts, repeat, small=tiny)
  report.show(record)
  if out:
    print("wrote " + ", ".join(map(str, report.write(record, out))))


def measure(subject, cases: list, parts: Sequence[str], repeat: int, *, small: bool) -> dict[str, Any]:
  """The machine, and each part for every case: rollout, then against, then update, which gives the parameters up."""
  from rich.console import Console

  from opd_jax import metrics
  from opd_jax.benchmarks import against, machine, rollout, update

  progress = Console(stderr=True, highlight=False)
  say = lambda what: progress.print(f"  measuring {what}", soft_wrap=True)
  record: dict[str, Any] = {part: [] for part in parts}
  say("the machine")
  rates = machine.measure(subject.dtype, repeat, small=small)
  params, programs = subject.params(), {}
  if "rollout" in parts:
    for case in cases:
      say(f"the rollout of {case}")
      programs[case] = rollout.program(subject, case, params)
      record["rollout"].append(rollout.measure(subject, case, params, programs[case], rates, repeat))
  if "against" in parts:
    theirs = against.Theirs(subject, params)
    for case in cases:
      say(f"transformers on {case}")
      record["against"].append(theirs.measure(subject, case, params, programs[case][0], repeat))
  if "update" in parts:
    state, judges = subject.state(params), subject.judges()
    for case in cases:
      say(f"the update of {case}")
      measured, state = update.measure(subject, case, state, judges, rates, repeat)
      record["update"].append(measured)
  if set(PARTS) <= set(parts):
    record["step"] = [step(*both) for both in zip(record["rollout"], record["update"], strict=True)]
  return {"machine": rates.as_json(), **record, "process_peak_bytes": metrics.peak_memory()}


def combinations(*sizes: list[int]) -> list:
  """Every `subject.Case` of these batches, prompts and horizons."""
  from opd_jax.benchmarks.subject import Case

  return [Case(*one) for one in itertools.product(*sizes)]


def numbers(name: str, text: str | None, default: int) -> list[int]:
  """The sizes of --NAME, each at least 1."""
  try:
    found = [int(part) for part in (text if text is not None else str(default)).split(",")]
  except ValueError:
    found = []
  if not found or min(found) < 1:
    raise InputError(f"--{name}={text} is not a list of whole numbers above 0; write it as --{name}=16,64.")
  return list(dict.fromkeys(found))


def step(rollout: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
  """A whole step: both one after the other."""
  both = {key: rollout[key] + update[key] for key in ("seconds", "min_seconds", "roofline_seconds")}
  return {
    **{key: rollout[key] for key in ("batch", "rows", "prompt", "horizon")},
    **both,
    "tokens_per_second": rollout["rows"] * rollout["horizon"] / both["seconds"],
    "fraction_of_roofline": both["roofline_seconds"] / both["min_seconds"],
  }


def describe(subject, command: str, repeat: int) -> dict[str, Any]:
  """What was measured, with what and on what."""
  import jax

  from opd_jax import workdir
  from opd_jax.benchmarks import machine, roofline

  def model(name: str, cfg) -> dict[str, Any]:
    return {"name": name, "parameters": roofline.parameters(cfg), **dataclasses.asdict(cfg)}

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
