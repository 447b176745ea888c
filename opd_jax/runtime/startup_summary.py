"""What a run reports of itself before its first step: models, horizon, programs, warnings."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from opd_jax.config import Config, width_unit
from opd_jax.runtime import hosts

Params = dict[str, Any]
PROMPT = 600  # characters of a prompt that is shown


def summary_lines(
  config: Config, run: Any, student: Params, teachers: Mapping[str, Params], horizon: Iterable[str], probed: bool
) -> Iterator[str]:
  """Makes the lines, one after another.

  Args:
    run: see runtime/run.py; its inputs, expected shapes and workdir are shown.
    student: parameters, which are counted.
    teachers: by name, likewise.
    horizon: lines that describe the stages of the horizon.
    probed: whether some steps also run a program that probes the gradient.
  """
  inputs = run.inputs
  adapter = [a for name, a in student["layers"].items() if name[-2:] in ("_a", "_b")]
  trained = f", of which {_millions(adapter)} are trained" if adapter else ""
  teacher_names = " and ".join(f"teacher {name} ({_millions(params)})" for name, params in teachers.items())
  yield (
    f"{config.horizon.kind} horizon, {_loss(config)}, student {config.student} "
    f"({_millions(student)}{trained}), {teacher_names or 'no teacher'}, {config.steps} steps of "
    f"{config.batch} x {config.rollouts_per_prompt} rollouts, {len(inputs.train.ids):,} prompts of at most "
    f"{inputs.prompt_widths[-1]} tokens, {_mesh(inputs.mesh)}, {inputs.dtype}, workdir {run.workdir.name}"
  )
  yield from horizon
  evaluations = " and 1 for evaluation" if config.eval.every else ""
  encoding = f" and {inputs.encode_programs} to encode images" if inputs.encode_programs else ""
  probes = " and 1 to probe for each prompt width" if probed else ""
  shapes = [shape for shape in run.expected if shape.kind == "step"]
  listed = ", ".join(f"{s.prompt} + {s.width}" for s in shapes)
  updates = [shape.context for shape in run.expected if shape.kind == "update"]
  programs = "x 2 programs (rollout, update)"
  if layers := sum(shape.kind == "layer" for shape in run.expected):  # of rollouts that branch
    programs = f"of an update, {layers} of a layer of rollouts"
  if updates:  # they have shapes of their own
    programs = f"of a rollout, {len(updates)} of an update with contexts of at most {max(updates)} tokens"
  yield f"  {len(shapes)} shape(s) {programs}{probes}{evaluations}{encoding}; prompt + {width_unit(config)}: {listed}"
  yield from (f"  note: {warning}" for warning in inputs.warnings)


def prompt_line(inputs: Any) -> str:
  """Shows the first prompt of the data as the models see it, with all special tokens; a long one without its middle."""
  ids = inputs.train.ids[0]
  text = inputs.tokenizer.decode(list(ids), skip_special_tokens=False)
  if len(text) > PROMPT:
    text = f"{text[: PROMPT // 2]} ... {text[-PROMPT // 2 :]}"
  reader = "the teachers read" if inputs.train.conversations else "the models read"
  return f"  a prompt as {reader} it ({len(ids)} tokens): {text!r}"


def _loss(config: Config) -> str:
  """Names the terms of the loss."""
  terms = [f"{config.objective.kind} ({config.objective.support})"] if config.mixture.divergence else []
  if config.mixture.reward:
    terms.append("reward" if config.surrogate.kind == "importance" else f"reward ({config.surrogate.kind})")
  return " + ".join(terms)


def _mesh(mesh: jax.sharding.Mesh) -> str:
  axes = " x ".join(f"{name} {n}" for name, n in mesh.shape.items() if n > 1)
  processes = f" in {jax.process_count()} processes" if hosts.several() else ""
  return f"{mesh.size} device(s){f' ({axes})' if axes else ''}{processes}"


def _millions(params: Any) -> str:
  return f"{sum(a.size for a in jax.tree.leaves(params)) / 1e6:.2f}M"
