"""Writes a run's student as a Hugging Face directory that transformers and vLLM load.

python -m opd_jax.export --workdir=runs/popd --out=DIR [--step=N] [--dtype=bfloat16]
"""

import pathlib

from absl import flags

from opd_jax import cli
from opd_jax.errors import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "a run's directory", flag_values=values)
  flags.DEFINE_string("out", None, "the directory to write; it must not hold anything yet", flag_values=values)
  flags.DEFINE_integer("step", None, "which checkpoint; the last by default", flag_values=values)
  flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "type of the weights on disk", flag_values=values)


def run(values: flags.FlagValues, c) -> None:
  from etils import epath

  from opd_jax import hosts, inputs, state
  from opd_jax import mesh as meshes
  from opd_jax.models import hf

  if not values.workdir or not values.out:
    raise InputError("Name both the run and the directory to write: --workdir=runs/NAME --out=DIR.")
  student = inputs.model(c.student)
  mesh = meshes.for_reading(c.mesh)
  params, step = state.saved_params(c, student.cfg, mesh, epath.Path(values.workdir), values.step)
  hf.write(pathlib.Path(values.out), student.cfg, params, like=student.path, dtype=values.dtype)
  if hosts.first():
    print(f"wrote the student of {values.workdir}, step {step}, to {values.out}")


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir, several=True)
