"""Writes a run's student as a Hugging Face directory that transformers and vLLM load.

python -m opd_jax.export --workdir=runs/popd --out=DIR [--step=N] [--dtype=bfloat16]

A student that was trained through an adapter is written as a PEFT directory, or with --merge as a whole model.
"""

import pathlib

from absl import flags

from opd_jax import cli
from opd_jax.errors import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "a run's directory", flag_values=values)
  flags.DEFINE_string("out", None, "the directory to write; it must not hold anything yet", flag_values=values)
  flags.DEFINE_integer("step", None, "which checkpoint; the last by default", flag_values=values)
  flags.DEFINE_bool("merge", False, "an adapter's run: the whole model instead of a PEFT directory", flag_values=values)
  flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "type of the weights on disk", flag_values=values)


def run(values: flags.FlagValues, c) -> None:
  from etils import epath

  from opd_jax import hosts, inputs, state
  from opd_jax import mesh as meshes
  from opd_jax.models import hf, lora

  if not values.workdir or not values.out:
    raise InputError("Name both the run and the directory to write: --workdir=runs/NAME --out=DIR.")
  student, adapter = inputs.learner(c), lora.from_config(c.lora)
  mesh, root, out = meshes.for_reading(c.mesh), epath.Path(values.workdir), pathlib.Path(values.out)
  if adapter and not values.merge:
    params, step = state.trained_params(c, student.cfg, mesh, root, values.step)
    hf.check_new(out)
    low = hosts.whole(params)
    hosts.on_first(lambda: lora.write(out, student.cfg, adapter, low, str(student.path.resolve())))
  else:
    params, step = state.saved_params(c, student.path, student.cfg, mesh, root, values.step)
    params = lora.merge(params, student.cfg.adapter_scale) if adapter else params
    hf.write(out, hf.read_config(student.path), params, like=student.path, dtype=values.dtype)
  what = "adapter" if adapter and not values.merge else "student"
  if hosts.first():
    print(f"wrote the {what} of {values.workdir}, step {step}, to {out}")


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir, several=True)
