"""What a run would need on a TPU slice that is not here, or on this machine: every program compiled, nothing allocated.

    python -m opd_jax.plan --config=configs/popd.py:paper --topology=v5e:4x4 --student=Qwen3-1.7B --teacher=Qwen3-8B
    python -m opd_jax.plan --config=configs/popd.py:paper --topology=v5p:4x4x4 --mesh=fsdp=16,tensor=4 --stages=last
    python -m opd_jax.plan --config=configs/popd.py:paper --topology=v5e:4x4,v5e:16x16 --weak --mesh=fsdp=16
    python -m opd_jax.plan --topology=v5litepod-8                                a slice by its accelerator type
    python -m opd_jax.plan                                                       the devices of this machine

A TPU is not needed: libtpu (Linux; `pip install "jax[tpu]"` takes the one that jax was made with) compiles for any slice, such as
v5e:16x16, v6e:16x16, v5p:16x16x16, v4:4x4x4 or tpu7x:2x2x1, or by accelerator type v5litepod-8, v6e-32, v5p-128 or v4-64, as
tpu_scripts/create.sh takes it; several slices of one kind with --slices. Of a model only its sizes are needed: a directory, a
config.json, builtin:NAME, or the name of a public model (models/architectures.py). Keys of the config are overridden
as in training (--config.batch=32).

It begins with a verdict: fits or not, how full a chip is, how long a step and the run take. For each stage a table says what rollout, update (in which the teachers score) and evaluation hold of a device's memory,
what they compute, read and send, and inside of the token loop or outside; what is largest, and which keys would make it
fit. Memory and collectives are those of the compiled programs. Seconds, tokens per second and chip-hours are estimates
from published rates (planning/estimate.py says how): bounds for comparing plans, and no measurements.

Status: 0 all was compiled, whether it fits or not; 1 a program was not compiled, for another reason than that it does not
fit; 2 a wrong input.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.runtime import cli

NOT_COMPILED = 1  # exit status


def define(values: flags.FlagValues) -> None:
  """Adds the planner's own flags."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text(
    "topology",
    "local",
    "a TPU slice such as v5e:4x4 or v5litepod-16, several with commas between them, or local: this machine",
  )
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
  """Plans what the command line asks for; returns the exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  command = " ".join(["python -m opd_jax.plan", *argv])
  cli.quiet()
  specs: list[str] = []

  def source(arguments: Sequence[str], spec: str | None):
    specs.append(spec or "popd")
    return cli.of_method(arguments, spec)

  with cli.reporting_the_end():
    values, config = cli.parse(["plan", *argv], __doc__ or "", define, source)
    status = run(values, config, specs[0], command)
  return status


def run(values: flags.FlagValues, config: Config, spec: str, command: str) -> int:
  """Checks everything before anything is compiled, plans for every topology, and shows and writes the record.

  Args:
    spec: METHOD[:SCALE] of --config.
    command: the command line, for the record.

  Returns:
    The exit status: NOT_COMPILED where a program was not compiled for another reason than that it does not fit.
  """
  from opd_jax.planning import libtpu, record, setup, tables, topology

  names = [name.strip() for name in values.topology.split(",")]
  if names != [topology.LOCAL]:
    topology.configure_libtpu()
  warnings = [libtpu.mismatch()] if names != [topology.LOCAL] and libtpu.mismatch() else []
  methods = parse_methods(values.methods)
  if values.slices < 1 or (values.prompt is not None and values.prompt < 1):
    raise InputError("--slices and --prompt have to be at least 1.")
  overrides = cli.model_overrides(values.student, values.teacher)
  if values.mesh:
    overrides |= setup.mesh_overrides(values.mesh)
  c = configs.override(config, overrides)
  targets = [topology.get(name, values.slices) for name in names]
  fewest = len(targets[0].devices)
  growth = [len(target.devices) / fewest if values.weak else 1.0 for target in targets]
  setups = [setup.make(c, target, values.prompt, grown) for target, grown in zip(targets, growth, strict=True)]
  schedules = {method: setup.method_schedule(c, method, spec.partition(":")[2]) for method in methods}
  selected = [setup.select_stages(s.stages, values.stages) for s in setups]
  out = cli.output_directory(values.out) if values.out else None
  for warning in warnings:
    print(f"warning: {warning}", file=sys.stderr)
  plan = {
    "command": command,
    **versions(),
    "warnings": warnings,
    **record.models(setups[0]),
    "targets": [plan_target(s, stages, schedules) for s, stages in zip(setups, selected, strict=True)],
  }
  blocks = tables.blocks(plan)
  tables.show(blocks)
  if out:
    print("wrote " + ", ".join(map(str, tables.write(plan, blocks, out))))
  return NOT_COMPILED if any(target["verdict"]["failed"] for target in plan["targets"]) else 0


def plan_target(setup, selected: list, schedules: dict[str, Any]) -> dict[str, Any]:
  """Compiles the selected stages for one target, which may take minutes; progress goes to standard error.

  Args:
    setup: a `planning.setup.Setup`.
    selected: the stages to compile.
    schedules: of each method whose run is estimated.
  """
  from rich.console import Console

  from opd_jax.planning import record, stages

  name = setup.target.name
  progress = Console(stderr=True, highlight=False)

  def report_progress(program):
    size = f"{program.memory.total / 2**30:.2f} GiB" if program.memory else program.error
    progress.print(f"  {name}: {program.name} compiled in {program.seconds:.0f} s, {size}", soft_wrap=True)
    return program

  programs: dict[int, list] = {}
  for stage in selected:
    progress.print(f"  {name}: compiling update and rollout for {stage.width} tokens", soft_wrap=True)
    programs[stage.width] = [report_progress(program) for program in stages.programs(setup, stage.width)]
  evaluation = None
  if setup.c.eval.every:
    progress.print(f"  {name}: compiling the evaluation", soft_wrap=True)
    evaluation = report_progress(stages.evaluation(setup))
  encoding = stages.encoding(setup)
  if encoding is not None:
    report_progress(encoding)
  return record.target(setup, selected, programs, evaluation, stages.resident(setup), schedules, encoding)


def parse_methods(text: str) -> list[str]:
  """Parses the methods of --methods without repetitions.

  Raises:
    InputError: for a name that is no method.
  """
  from opd_jax.planning.setup import METHODS

  methods = [name.strip() for name in text.split(",") if name.strip()]
  for name in methods:
    if name not in METHODS:
      raise InputError(f"--methods={text} names {name!r}; it can name {', '.join(METHODS)}.")
  return list(dict.fromkeys(methods))


def versions() -> dict[str, Any]:
  """Lists the versions and the machine that the plan was made with; libtpu is None where it is not installed."""
  from opd_jax.planning import libtpu
  from opd_jax.runtime import workdir

  return {**workdir.provenance(), "libtpu": libtpu.version()}


if __name__ == "__main__":
  sys.exit(main())
