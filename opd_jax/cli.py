"""The command line that the entry points share: --config=FILE[:SCALE] and --config.KEY=VALUE overrides.

Overrides are parsed by ml_collections against the types of the defaults; a wrong input ends in one sentence and
status 2, never in a traceback.
"""

import itertools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from opd_jax import config as configs
from opd_jax import supervise, xla
from opd_jax.config import Config
from opd_jax.errors import RESUME, InputError, Leave

Source = Callable[[Sequence[str], str | None], Config]  # (arguments, --config or None) -> the config to override


def main(
  run: Callable[[flags.FlagValues, Config], None],
  usage: str,
  define: Callable,
  source: Source,
  several: bool = False,
) -> None:
  """Parses sys.argv and calls `run(flags, config)`.

  Args:
    usage: what --help prints before the flags.
    define: adds the entry point's own flags to a FlagValues.
    source: where the config comes from, `of_method` or `of_workdir`.
    several: whether the entry point can be one of several processes; then it has the flags that join them.
  """
  quiet()
  status = 0
  try:
    own = (lambda values: [define(values), _define_processes(values)]) if several else define
    values, c = parse(sys.argv, usage, own, source)
    joins = several and (values.coordinator is not None or supervise.clustered())
    with supervise.supervised(joins):
      try:
        if joins:
          from opd_jax import hosts

          hosts.start(values.coordinator, values.processes, values.process, values.silence)
        run(values, c)
      except Leave as e:
        print(f"{e}; the same command goes on", file=sys.stderr)
        status = RESUME
      if hosts := _joined():
        hosts.finish()
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    status = 2
    _tell_others(e)
  except KeyboardInterrupt as e:
    print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    status = 130
    _tell_others(e)
  except Exception as e:
    if not _joined():
      raise
    traceback.print_exc()
    _tell_others(e)
  sys.exit(status)


def _define_processes(values: flags.FlagValues) -> None:
  said = "one of several processes; not needed on TPU slices, Slurm, Open MPI"
  flags.DEFINE_string("coordinator", None, f"HOST:PORT of process 0; {said}", flag_values=values)
  flags.DEFINE_integer("processes", None, f"how many there are; {said}", flag_values=values)
  flags.DEFINE_integer("process", None, f"which this is, from 0; {said}", flag_values=values)
  flags.DEFINE_float(
    "silence", 30.0, "seconds without a sign of life after which a process is lost", flag_values=values
  )


def _joined():
  """opd_jax.hosts, where this process is one of several."""
  hosts = sys.modules.get("opd_jax.hosts")
  return hosts if hosts and hosts.joined() else None


def _tell_others(e: BaseException) -> None:
  """Where there are other processes, ends this one at once: JAX's own way out would wait for them."""
  if hosts := _joined():
    hosts.leave(e)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(2 if isinstance(e, InputError) else 130 if isinstance(e, KeyboardInterrupt) else 1)


def of_method(argv: Sequence[str], spec: str | None) -> Config:
  """--config=FILE[:SCALE]; POPD where it is not given."""
  return configs.load(spec or "popd")


def of_workdir(argv: Sequence[str], spec: str | None) -> Config:
  """The config that --workdir was made with; without a workdir, --config or the defaults."""
  from opd_jax import bucket, workdir

  for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
    if named := re.fullmatch(r"--?workdir(?:=(.*))?", arg):
      if spec:
        raise InputError(
          "A --workdir has its config with it: leave --config out, and override keys with --config.KEY=VALUE."
        )
      return workdir.load_config(bucket.Place(named[1] if named[1] is not None else after).fetch())
  return configs.load(spec) if spec else configs.default()


def parse(argv: Sequence[str], usage: str, define: Callable, source: Source) -> tuple[flags.FlagValues, Config]:
  """Flags and the config with its overrides."""
  values = flags.FlagValues()
  flags.DEFINE_bool("help", False, "show this help", flag_values=values)
  define(values)
  spec = next((a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)), None)
  if spec is None and any(a in ("--config", "-config") for a in argv):
    raise InputError("Write the config as --config=FILE, with an equals sign.")
  c = source(argv, spec)
  argv = [a for a in argv if not re.match(r"--?config=", a)]
  known = configs.flat(c.to_dict())
  for key in (m[1] for a in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))):
    if key not in known:
      raise configs.unknown_key(c, key)
  try:
    config_flags.DEFINE_config_dict("config", c, flag_values=values, lock_config=True, sys_argv=list(argv))
    rest = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise InputError(" ".join(str(e).split()).rstrip(".") + ".") from None
  if values["help"].value:
    print(usage.strip(), "\n\nConfig keys (override with --config.KEY=VALUE):\n")
    meanings = configs.meanings()
    for key, value in known.items():
      print(f"  {key} = {value!r}" + (f"    {meanings[key]}" if key in meanings else ""))
    for name in sorted(n for n in values if n not in ("help", "config") and not n.startswith("config.")):
      print(f"\n  --{name}: {values[name].help}", end="")
    print()
    sys.exit(0)
  if len(rest) > 1:
    raise InputError(f"The argument {rest[1]!r} belongs to no flag; flags are written --NAME=VALUE.")
  return values, values["config"].value


def quiet() -> None:
  """Sets the environment before JAX is there, and keeps the libraries' chatter off the terminal."""
  xla.configure()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  warnings.filterwarnings("ignore", category=UserWarning, module=r"(orbax|jax|grain).*")
  for name in ("absl", "orbax", "jax", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)
