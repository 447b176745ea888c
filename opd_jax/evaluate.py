"""Accuracy of a model on verifiable problems: avg@k and pass@k, always full-length.

    python -m opd_jax.evaluate --workdir=runs/popd                      the last checkpoint of a run, under its config
    python -m opd_jax.evaluate --workdir=runs/popd --step=50 --config.eval.k=8 --config.eval.pass_at='(1, 8)'
    python -m opd_jax.evaluate --model=DIR --config=configs/opd.py:hf --config.eval.path=test.jsonl

The result is printed, and written as JSON to --out (by default evaluation.json in the workdir).
"""

import json
import pathlib

from absl import flags

from opd_jax import cli
from opd_jax.errors import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "a run's directory", flag_values=values)
  flags.DEFINE_string("model", None, "a Hugging Face directory, or builtin:NAME", flag_values=values)
  flags.DEFINE_integer("step", None, "which checkpoint of the workdir; the last by default", flag_values=values)
  flags.DEFINE_string("out", None, "where the JSON goes", flag_values=values)


def run(values: flags.FlagValues, c) -> None:
  from rich.console import Console

  from opd_jax import evaluation, inputs, trainer
  from opd_jax import mesh as meshes
  from opd_jax.checkpoint import Checkpoints
  from opd_jax.models import hf
  from opd_jax.programs import use_cache

  path, model, step = (values.workdir, values.model, values.step)
  if bool(path) == bool(model):
    raise InputError("Name what to evaluate: either --workdir=DIR (a run) or --model=DIR (a Hugging Face directory).")
  c = c.copy_and_resolve_references().unlock()
  if model:
    c.student = c.teacher = model
  c.eval.every = 1  # evaluation problems are needed
  i = inputs.load(c.lock())
  if path:
    checkpoints = Checkpoints(pathlib.Path(path), c.checkpoint.keep)
    state, position = checkpoints.restore(trainer.read_state(c, i), step)
    params, what = state.params, f"{path}, step {position['step']}"
    checkpoints.close()
  else:
    params = hf.read(i.student.path, i.student.cfg, meshes.parameter_shardings(i.mesh, i.student.cfg))
    what = model
  use_cache(c.compile_cache, pathlib.Path(path or "runs/evaluate"))
  record, samples = evaluation.Evaluator(c, i, i.student.cfg, params)(params)

  console = Console(highlight=False)
  console.print(f"{what}: {record['prompts']} problems, {record['k']} answer(s) each, temperature {c.eval.temperature}")
  console.print(f"  avg@{record['k']}  {record['accuracy']:.4f}  [{record['low']:.4f}, {record['high']:.4f}]")
  for k, r in record["pass"].items():
    console.print(f"  pass@{k} {r['value']:.4f}  [{r['low']:.4f}, {r['high']:.4f}]")
  length = record["length"]
  console.print(
    f"  length mean {length['mean']:.1f}, median {length['p50']:.0f}, p90 {length['p90']:.0f}, "
    f"max {length['max']}; ended by a stop token {record['ended']:.1%}"
  )
  console.print("  intervals: 95%, over problems")
  out = pathlib.Path(values.out) if values.out else pathlib.Path(path) / "evaluation.json" if path else None
  if out:
    out.write_text(json.dumps({"of": what, **record, "samples": samples}, indent=2))
    console.print(f"  written to {out}")


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, default=cli.of_workdir)
