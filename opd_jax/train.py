"""Trains a student on its own rollouts under a teacher's answers.

    python -m opd_jax.train --config=configs/popd.py --workdir=runs/popd
    python -m opd_jax.train --config=configs/topd.py:hf --workdir=runs/gsm8k --config.student=DIR --config.teacher=DIR \\
        --config.data.path=train.jsonl --config.eval.path=test.jsonl
    python -m opd_jax.train --config=configs/popd.py --dry-run      prompts as the models see them, programs, memory; nothing is trained

The same command resumes a run that was stopped; --workdir alone takes the config that is saved there. A wrong input is
answered with one sentence, before anything is compiled or written. Ctrl-C saves before the next step, as SIGTERM does; a
second one leaves at once.

Status: 0 complete; 2 a wrong input; 3 complete, and nothing was learned: every update was skipped or empty; 75 asked to
stop by SIGTERM or maintenance, saved; 130 Ctrl-C.
"""

from absl import flags

from opd_jax.errors import NOTHING_LEARNED, InputError
from opd_jax.runtime import cli


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  flags.DEFINE_string("workdir", None, "directory of checkpoints and metrics; made if missing", flag_values=values)
  note = "config keys, with commas between, with which the run in --workdir goes on though it had other values"
  flags.DEFINE_multi_string("allow-change", [], note, flag_values=values)
  note = "shows prompts as the models see them, lengths, programs and memory; trains and writes nothing"
  flags.DEFINE_bool("dry-run", False, note, flag_values=values)


def run(values: flags.FlagValues, config) -> int:
  """Trains in --workdir, or with --dry-run tells what that would be; returns the status, NOTHING_LEARNED without an update.

  Raises:
    InputError: there is no --workdir, or anything that `trainer.train` refuses.
  """
  named = ",".join(values["allow-change"].value or ())
  allowed = [key.strip() for key in named.split(",") if key.strip()]
  if values["dry-run"].value:
    _dry_run(config, values.workdir, allowed)
    return 0
  if not values.workdir:
    raise InputError("Give the run a directory: --workdir=runs/NAME.")
  from opd_jax.runtime import interrupts, workdir
  from opd_jax.runtime.bucket import MirroredDir
  from opd_jax.trainer import train

  with interrupts.answered(lambda: workdir.kept(MirroredDir(values.workdir))):
    outcome = train(config, values.workdir, allow_change=allowed).outcome
  return NOTHING_LEARNED if outcome.learned_nothing else 0


def _dry_run(config, path: str | None, allowed: list[str]) -> None:
  """Prints what a run of this config would do, in this workdir if one is named, which stays as it is."""
  from opd_jax import inputs
  from opd_jax.planning import dry_run
  from opd_jax.runtime import began, bucket, hosts, workdir

  directory = bucket.MirroredDir(path) if path else None
  loaded = inputs.load(config, began.of_run(directory) if directory else began.of_process())
  if directory and hosts.first():
    workdir.check(directory, config, allowed)
  for line in dry_run.lines(config, loaded) if hosts.first() else ():
    print(line)
  loaded.close()


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_run, several=True)
