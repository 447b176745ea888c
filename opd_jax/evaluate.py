"""Accuracy of a model on verifiable problems: avg@k and pass@k, always full-length.

    python -m opd_jax.evaluate --workdir=runs/popd                      the last checkpoint of a run, under its config
    python -m opd_jax.evaluate --workdir=runs/popd --step=50 --config.eval.k=8 --config.eval.pass_at='(1, 8)'
    python -m opd_jax.evaluate --model=DIR --config=configs/opd.py:hf --config.eval.path=test.jsonl
    python -m opd_jax.evaluate --workdir=runs/ccopd --deviation         conversations: analysis/deviation.py too, which reads
                                                                        eval.batch whole sequences at once

Neither the teacher nor the training data is needed. The result is printed, and written as JSON to --out (by default
evaluation.json in the workdir).
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
  flags.DEFINE_bool(
    "deviation",
    False,
    "of conversations: also how far they move the last reply, and what it attends to",
    flag_values=values,
  )
  flags.DEFINE_string("out", None, "where the JSON goes", flag_values=values)


def run(values: flags.FlagValues, c) -> None:
  from rich.console import Console

  from opd_jax import bucket, checks, hosts, inputs, state
  from opd_jax import mesh as meshes
  from opd_jax.analysis.deviation import deviation
  from opd_jax.data import tokenizer as tokenizers
  from opd_jax.evaluation import Evaluator
  from opd_jax.models import hf
  from opd_jax.multiturn import MultiTurnEvaluator
  from opd_jax.programs import use_cache

  if bool(values.workdir) == bool(values.model):
    raise InputError("Name what to evaluate: either --workdir=DIR (a run) or --model=DIR (a Hugging Face directory).")
  out = pathlib.Path(values.out) if values.out else None
  place = bucket.Place(values.workdir) if values.workdir else None
  if place and not out:
    out = place.path / "evaluation.json"
  if out and not out.parent.is_dir():
    raise InputError(f"--out={out} cannot be written: there is no directory {out.parent}.")
  checks.check(c)
  if values.deviation and c.context.kind == "same":
    raise InputError(
      "--deviation compares a conversation with what is told at once, and config.context.kind is 'same'."
    )
  model = inputs.learner(c) if place else inputs.model(values.model)
  tokenizer = tokenizers.load(model.path)
  mesh = meshes.for_reading(c.mesh)
  i = inputs.load_evaluation(c, model, tokenizer, mesh, model.cfg.vocab)
  if place:
    params, step = state.saved_params(c, model.path, model.cfg, mesh, place.root, values.step)
    what = f"{place.name}, step {step}"
    use_cache(c.compile_cache, place.root)
  else:
    params, what = hf.read(model.path, model.cfg, meshes.parameter_shardings(mesh, model.cfg)), values.model
  evaluator = (MultiTurnEvaluator if i.problems.conversations else Evaluator)(c, i, params)
  record, samples = evaluator(params)
  if isinstance(evaluator, MultiTurnEvaluator):
    record["pollution"] = evaluator.pollution(params)
    if values.deviation:
      record["deviation"] = deviation(evaluator, params)
  if not hosts.first():
    return
  console = Console(highlight=False, soft_wrap=True)
  console.print(f"{what}: {record['prompts']} problems, {record['k']} answer(s) each, temperature {c.eval.temperature}")
  console.print(f"  avg@{record['k']}  {record['accuracy']:.4f}  [{record['low']:.4f}, {record['high']:.4f}]")
  told = record.get("forms", {}) | {f"a wrong {name}": r for name, r in record.get("pollution", {}).items()}
  for name, r in told.items():
    console.print(f"  {name}: {r['accuracy']:.4f}  [{r['low']:.4f}, {r['high']:.4f}]")
  if (guess := record.get("anchored")) and guess["kept"] is not None:
    console.print(
      f"  after a wrong answer of its own ({guess['wrong']:.1%} of raw), that answer again: {guess['kept']:.1%}"
    )
  if said := record.get("deviation"):
    console.print(
      f"  deviation of raw from full {said['psi']:.4f} nats a token, of it by its own turns {said['own_turn']:.4f}"
    )
    if said["looks"]:
      each = " ".join(f"{ratio:+.2f}" for ratio in said["looks"])
      console.print(f"  its attention to the user's turns over that to its own, log, by layer: {each}")
  for k, r in record["pass"].items():
    console.print(f"  pass@{k} {r['value']:.4f}  [{r['low']:.4f}, {r['high']:.4f}]")
  length = record["length"]
  console.print(
    f"  length mean {length['mean']:.1f}, median {length['p50']:.0f}, p90 {length['p90']:.0f}, "
    f"max {length['max']}; ended by a stop token {record['ended']:.1%}"
  )
  if i.problems.skipped:
    console.print(f"  {i.problems.skipped} unusable line(s) were left out")
  console.print("  intervals: 95%, over problems")
  if out:
    out.write_text(json.dumps({"of": what, **record, "samples": samples}, indent=2))
    if place and out.parent == place.path:
      place.push()
    console.print(f"  written to {out}")


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir, several=True)
