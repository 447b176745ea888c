"""Trains a student on its own rollouts under a teacher's answers.

    python -m opd_jax.train --config=configs/popd.py --workdir=runs/popd
    python -m opd_jax.train --config=configs/topd.py:hf --workdir=runs/gsm8k --config.student=DIR --config.teacher=DIR \\
        --config.data.path=train.jsonl --config.eval.path=test.jsonl

The same command resumes a run that was stopped. A wrong input is answered with one sentence, before anything is
compiled or written.
"""

from absl import flags

from opd_jax.errors import InputError
from opd_jax.runtime import cli


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  flags.DEFINE_string("workdir", None, "directory of checkpoints and metrics; made if missing", flag_values=values)


def run(values: flags.FlagValues, config) -> None:
  """Trains in --workdir.

  Raises:
    InputError: there is no --workdir, or anything that `trainer.train` refuses.
  """
  if not values.workdir:
    raise InputError("Give the run a directory: --workdir=runs/NAME.")
  from opd_jax.trainer import train

  train(config, values.workdir)


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_method, several=True)
