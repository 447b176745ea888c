"""What a run would need on a TPU slice that is not here, or on this machine: every program compiled, nothing allocated.

    python -m opd_jax.plan --config=configs/popd.py:paper --topology=v5e:4x4 --student=Qwen3-1.7B --teacher=Qwen3-8B
    python -m opd_jax.plan --config=configs/popd.py:paper --topology=v5p:4x4x4 --mesh=fsdp=16,tensor=4 --stages=last
    python -m opd_jax.plan --config=configs/popd.py:paper --topology=v5e:4x4,v5e:16x16 --weak --mesh=fsdp=16
    python -m opd_jax.plan                                                       the devices of this machine

A TPU is not needed: `pip install libtpu` (Linux) compiles for any slice, such as v5e:16x16, v6e:16x16, v5p:16x16x16,
v4:4x4x4 or tpu7x:2x2x1; several slices of one kind with --slices. Of a model only its sizes are needed: a directory, a
config.json, builtin:NAME, or the name of a public model (planning/architectures.py). Keys of the config are overridden
as in training (--config.batch=32).

For each stage a table says what rollout, update (in which the teachers score) and evaluation hold of a device's memory,
what they compute, read and send, and inside of the token loop or outside; what is largest, and which keys would make it
fit. Memory and collectives are those of the compiled programs. Seconds, tokens per second and chip-hours are estimates
from published rates (planning/estimate.py says how): bounds for comparing plans, and no measurements.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from opd_jax import cli
from opd_jax import config as configs
from opd_jax.errors import InputError


def define(values: flags.FlagValues) -> None:
  text = lambda name, default, said: flags.DEFINE_string(name, default, said, flag_values=values)
  text("topology", "local", "a TPU slice such as v5e:4x4, several with commas between them, or local: this machine")
  flags.DEFINE_integer("slices", 1, "slices of the topology, joined by the data-centre network", flag_values=values)
  text("mesh", None, "shorthand of config.mesh.*: fsdp=8,tensor=2; data takes the rest")
  text("student", None, "instead of config.student: directory, config.json, builtin:NAME or a public model's name")
  text("teacher", None, "instead of config.teacher(s): likewise")
  flags.DEFINE_integer("prompt", None, "tokens of every prompt (config.data.max_prompt)", flag_values=values)
  text("stages", "all", "which are compiled: all, first, last, or numbers, with commas between them")
  text("methods", "opd,topd,popd", "whose whole runs are estimated side by side")
  flags.DEFINE_bool(
    "weak", False, "batch and micro-batch grow with the chips from the first topology on", flag_values=values
  )
  text("out", None, "a directory for plan.json and plan.md")


def main(argv: Sequence[str] | None = None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  command = " ".join(["python -m opd_jax.plan", *argv])
  cli.quiet()
  specs: list[str] = []

  def source(arguments: Sequence[str], spec: str | None):
    specs.append(spec or "popd")
    return cli.of_method(arguments, spec)

  try:
    values, c = cli.parse(["plan", *argv], __doc__ or "", define, source)
    run(values, c, specs[0], command)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    return 130
  return 0


def run(values: flags.FlagValues, c, spec: str, command: str) -> None:
  """Checks everything before anything is compiled, plans for every topology, and shows and writes the record."""
  from opd_jax.planning import record, report, setup, topology

  names = [name.strip() for name in values.topology.split(",")]
  if names != [topology.LOCAL]:
    topology.prepare()
  methods = checked_methods(values.methods)
  if values.slices < 1 or (values.prompt is not None and values.prompt < 1):
    raise InputError("--slices and --prompt have to be at least 1.")
  named = {"student": values.student, "teacher": values.teacher} | ({"teachers": ()} if values.teacher else {})
  overrides = {key: name for key, name in named.items() if name is not None}
  c = configs.override(c, overrides | (setup.mesh_overrides(values.mesh) if values.mesh else {}))
  targets = [topology.get(name, values.slices) for name in names]
  weak = lambda target: len(target.devices) / len(targets[0].devices) if values.weak else 1.0
  setups = [setup.make(c, target, values.prompt, weak(target)) for target in targets]
  schedules = {method: setup.of_method(c, method, spec.partition(":")[2]) for method in methods}
  picked = [setup.chosen(s.stages, values.stages) for s in setups]
  out = opened(values.out) if values.out else None
  found = {
    "command": command,
    **versions(),
    **record.models(setups[0]),
    "targets": [planned(*pair, schedules) for pair in zip(setups, picked, strict=True)],
  }
  blocks = report.blocks(found)
  report.show(blocks)
  if out:
    print("wrote " + ", ".join(map(str, report.write(found, blocks, out))))


def planned(s, chosen: list, schedules: dict[str, Any]) -> dict[str, Any]:
  """One target's record; says on standard error what is being compiled, which may take minutes."""
  from rich.console import Console

  from opd_jax.planning import record, stages

  progress = Console(stderr=True, highlight=False)

  def told(program):
    held = f"{program.memory.total / 2**30:.2f} GiB" if program.memory else program.failed
    progress.print(f"  {s.target.name}: {program.name} compiled in {program.seconds:.0f} s, {held}", soft_wrap=True)
    return program

  programs: dict[int, list] = {}
  for stage in chosen:
    progress.print(f"  {s.target.name}: compiling update and rollout for {stage.width} tokens", soft_wrap=True)
    programs[stage.width] = [told(program) for program in stages.programs(s, stage.width)]
  evaluation = None
  if s.c.eval.every:
    progress.print(f"  {s.target.name}: compiling the evaluation", soft_wrap=True)
    evaluation = told(stages.evaluation(s))
  return record.target(s, chosen, programs, evaluation, stages.resident(s), schedules)


def opened(out: str):
  from opd_jax.benchmarks.report import open_  # with matplotlib, which a plan does without

  return open_(out)


def checked_methods(text: str) -> list[str]:
  from opd_jax.planning.setup import METHODS

  found = [name.strip() for name in text.split(",") if name.strip()]
  for name in found:
    if name not in METHODS:
      raise InputError(f"--methods={text} names {name!r}; it can name {', '.join(METHODS)}.")
  return list(dict.fromkeys(found))


def versions() -> dict[str, Any]:
  import importlib.metadata

  from opd_jax import workdir

  try:
    libtpu = importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    libtpu = None
  return {**workdir.provenance(), "libtpu": libtpu}


if __name__ == "__main__":
  sys.exit(main())
