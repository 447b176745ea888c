"""Accuracy of a model on verifiable problems: avg@k and pass@k, always full-length.

    python -m opd_jax.evaluate --workdir=runs/popd                      the last checkpoint of a run, under its config
    python -m opd_jax.evaluate --workdir=runs/popd --step=50 --config.eval.k=8 --config.eval.pass_at='(1, 8)'
    python -m opd_jax.evaluate --model=DIR --config=configs/opd.py:hf --config.eval.path=test.jsonl
    python -m opd_jax.evaluate --workdir=runs/ccopd --deviation         conversations: analysis/deviation.py too, which reads
                                                                        eval.batch whole sequences at once

Neither the teacher nor the training data is needed. A chat template that writes the date writes that of the run's first start, and
today's with --model. The result is printed, and written as JSON to --out (by default
evaluation.json in the workdir).
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from opd_jax.config import expanded_path
from opd_jax.errors import InputError
from opd_jax.runtime import cli
from opd_jax.runtime.outcome import answers_cut


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
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


def run(values: flags.FlagValues, config) -> None:
  """Evaluates the models of a run or of a directory; prints the records and writes them as JSON.

  Raises:
    InputError: nothing or too much to evaluate, or an --out that cannot be written.
  """
  from rich.console import Console

  from opd_jax.analysis import accuracy, loaded
  from opd_jax.runtime import bucket, hosts
  from opd_jax.runtime.programs import use_cache

  if bool(values.workdir) == bool(values.model):
    raise InputError("Name what to evaluate: either --workdir=DIR (a run) or --model=DIR (a Hugging Face directory).")
  out = expanded_path(values.out) if values.out else None
  directory = bucket.MirroredDir(values.workdir) if values.workdir else None
  if directory and not out:
    out = directory.path / "evaluation.json"
  if out and not out.parent.is_dir():
    raise InputError(f"--out={out} cannot be written: there is no directory {out.parent}.")
  accuracy.check(config, deviation=values.deviation)
  if directory:
    use_cache(config.compile_cache, directory.root)
    models = loaded.load_models(values.workdir, step=values.step, config=config)
  else:
    models = {"model": loaded.load_directory(values.model, config=config)}
  console = Console(highlight=False, soft_wrap=True)

  def say(lines: Iterable[str]) -> None:
    for line in lines if hosts.first() else ():
      console.print(line, markup=False)

  results = {}
  for name, model in models.items():
    where = f"{model.origin.workdir}, step {model.origin.step}" if model.origin else values.model
    skipped = []

    def tell(problems, model=model, skipped=skipped):
      say(f"note: {note}" for note in filter(None, (model.spec.stop_note, *problems.notes)))
      skipped.append(problems.skipped)

    record = accuracy.measure(model, config, deviation=values.deviation, tell=tell)
    results[name] = {"of": where if len(models) == 1 else f"{where}, {name}", **record}
    say(summary_lines(config, results[name], skipped[0]))
  if hosts.first() and out:
    out.write_text(json.dumps(next(iter(results.values())) if len(results) == 1 else results, indent=2))
    if directory and out.parent == directory.path:
      directory.push()
    say([f"  written to {out}"])


def summary_lines(config, record: dict[str, Any], skipped: int) -> Iterator[str]:
  """Makes the lines that are printed of a record of `run`, one after another."""
  temperature = config.eval.temperature
  yield f"{record['of']}: {record['prompts']} problems, {record['k']} answer(s) each, temperature {temperature}"
  yield f"  avg@{record['k']}  {record['accuracy']:.4f}  [{record['low']:.4f}, {record['high']:.4f}]"
  if greedy := record.get("greedy"):
    yield f"  greedy  {greedy['accuracy']:.4f}  [{greedy['low']:.4f}, {greedy['high']:.4f}]"
  for name, r in record.get("domains", {}).items():
    yield f"  {name} ({r['prompts']} problems): {r['accuracy']:.4f}  [{r['low']:.4f}, {r['high']:.4f}]"
  forms = record.get("forms", {}) | {f"a wrong {name}": r for name, r in record.get("pollution", {}).items()}
  for name, r in forms.items():
    cut = f"; prompts that lost their beginning: {r['prompts_cut']}" if r.get("prompts_cut") else ""
    yield f"  {name}: {r['accuracy']:.4f}  [{r['low']:.4f}, {r['high']:.4f}]{cut}"
  if (guess := record.get("anchored")) and guess["kept"] is not None:
    yield f"  after a wrong answer of its own ({guess['wrong']:.1%} of raw), that answer again: {guess['kept']:.1%}"
  if cut := record.get("prompts_cut"):
    conversations = record["prompts"] * record["k"]
    yield f"  {cut} of {conversations} conversations lost their beginning: longer than context.turn_tokens reserves for"
  if cut := record.get("thoughts_cut"):
    yield f"  {cut} replies to earlier turns were cut inside their thought: raise context.turn_tokens"
  if found := record.get("deviation"):
    yield f"  deviation of raw from full {found['psi']:.4f} nats a token, of it by its own turns {found['own_turn']:.4f}"
    if found.get("prompts_cut"):
      yield f"  of the prompts that are compared, {found['prompts_cut']} lost their beginning"
    if found["looks"]:
      ratios = " ".join(f"{ratio:+.2f}" for ratio in found["looks"])
      yield f"  its attention to the user's turns over that to its own, log, by layer: {ratios}"
  for k, r in record["pass"].items():
    yield f"  pass@{k} {r['value']:.4f}  [{r['low']:.4f}, {r['high']:.4f}]"
  if steps := record.get("denoising_steps"):
    yield f"  {steps} denoising steps an answer"
  length = record["length"]
  yield (
    f"  length mean {length['mean']:.1f}, median {length['p50']:.0f}, p90 {length['p90']:.0f}, "
    f"max {length['max']}; ended by a stop token {record['ended']:.1%}"
  )
  if cut := answers_cut(record):
    yield f"  {cut}"
  if skipped:
    yield f"  {skipped} unusable line(s) were left out"
  yield "  intervals: 95%, over problems"


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir, several=True)
