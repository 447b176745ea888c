"""Writes a run's student as a Hugging Face directory that transformers and vLLM load.

python -m opd_jax.export --workdir=runs/popd --out=DIR [--step=N] [--dtype=bfloat16]

A student that was trained through an adapter is written as a PEFT directory, or with --merge as a whole model. README.md there is a model card.
"""

from absl import flags

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
  """Writes the models of a run, and says where they are.

  Raises:
    InputError: no run, no directory to write, or what `analysis.exporting.export` refuses.
  """
  from opd_jax.analysis import exporting
  from opd_jax.runtime import bucket, hosts, workdir

  if not values.workdir or not values.out:
    raise InputError("Name both the run and the directory to write: --workdir=runs/NAME --out=DIR.")
  nothing = hosts.first() and workdir.outcome(bucket.MirroredDir(values.workdir).path).learned_nothing
  written = exporting.export(
    values.workdir, values.out, step=values.step, merge=values.merge, dtype=values.dtype, config=config
  )
  if not hosts.first():
    return
  for one in written:
    what = one.kind if len(written) == 1 else f"{one.kind} {one.model!r}"
    print(f"wrote the {what} of {values.workdir}, step {one.step}, to {one.directory}")
  if nothing:
    print("  note: nothing was learned in this run, so these are the weights that it began with")


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir, several=True)
