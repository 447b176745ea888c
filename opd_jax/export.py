"""Writes a run's student as a Hugging Face directory that transformers and vLLM load.

python -m opd_jax.export --workdir=runs/popd --out=DIR [--step=N] [--dtype=bfloat16]

A student that was trained through an adapter is written as a PEFT directory, or with --merge as a whole model.
"""

import pathlib

from absl import flags

from opd_jax.config import expanded, expanded_path
from opd_jax.errors import InputError
from opd_jax.runtime import cli


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  flags.DEFINE_string("workdir", None, "a run's directory", flag_values=values)
  flags.DEFINE_string("out", None, "the directory to write; it must not hold anything yet", flag_values=values)
  flags.DEFINE_integer("step", None, "which checkpoint; the last by default", flag_values=values)
  flags.DEFINE_bool("merge", False, "an adapter's run: the whole model instead of a PEFT directory", flag_values=values)
  flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "type of the weights on disk", flag_values=values)


def run(values: flags.FlagValues, config) -> None:
  from etils import epath

  from opd_jax import inputs
  from opd_jax.recipes import base as recipes
  from opd_jax.runtime import bucket, hosts, workdir
  from opd_jax.runtime import mesh as meshes

  if not values.workdir or not values.out:
    raise InputError("Name both the run and the directory to write: --workdir=runs/NAME --out=DIR.")
  recipe = recipes.make(inputs.load_student(config, meshes.for_reading(config.mesh)))
  state, step = recipes.saved_state(recipe, epath.Path(expanded(values.workdir)), values.step)
  nothing = hosts.first() and workdir.outcome(bucket.MirroredDir(values.workdir).path).learned_nothing
  names, out = list(recipe.models(state)), expanded_path(values.out)
  for name in names:
    target = out if len(names) == 1 else out / name
    kind = _export(recipe, state, name, target, merge=values.merge, dtype=values.dtype)
    if hosts.first():
      what = kind if len(names) == 1 else f"{kind} {name!r}"
      print(f"wrote the {what} of {values.workdir}, step {step}, to {target}")
  if nothing:
    print("  note: nothing was learned in this run, so these are the weights that it began with")


def _export(recipe, state, name: str, out: pathlib.Path, *, merge: bool, dtype: str) -> str:
  """Writes one model, and returns what was written: "student" or "adapter"."""
  from opd_jax.models import hf, hf_config, lora
  from opd_jax.runtime import hosts

  model, adapter = recipe.spec(name), lora.from_config(recipe.config.lora)
  if adapter and not merge:
    hf.check_new(out)
    params = hosts.all_gather_to_host(recipe.models(state)[name])
    hosts.on_first(lambda: lora.write(out, model.cfg, adapter, params, str(model.path.resolve()), model.path))
    return "adapter"
  params = recipe.models(state, recipe.frozen(teachers=False))[name]
  params = lora.merge(params, model.cfg.adapter_scale) if adapter else params
  hf.write(out, hf_config.read(model.path), params, like=model.path, dtype=dtype)
  return "student"


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir, several=True)
