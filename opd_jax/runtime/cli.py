"""The command line that the entry points share: --config=FILE[:SCALE] and --config.KEY=VALUE overrides.

Overrides are parsed by ml_collections against the types of the defaults; a wrong input ends in one sentence and
status 2, never in a traceback.
"""

import contextlib
import itertools
import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import RESUME, InputError, StopRequested
from opd_jax.runtime import supervise, xla

Source = Callable[[Sequence[str], str | None], Config]  # (arguments, --config or None) -> the config to override
INPUT_ERROR = 2  # exit status of a command that was given a wrong input


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
          from opd_jax.runtime import hosts

          hosts.start(values.coordinator, values.processes, values.process, values.silence)
        run(values, c)
      except StopRequested as e:
        print(f"{e}; the same command goes on", file=sys.stderr)
        status = RESUME
      if hosts := _joined():
        hosts.finish()
  except InputError as e:
    _print_input_error(e)
    status = INPUT_ERROR
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


@contextlib.contextmanager
def reporting_input_errors(prefix: str = "error: ") -> Iterator[None]:
  """Prints an InputError of the block as one sentence on standard error, and ends the command.

  Raises:
    SystemExit: with status 2, in the place of the InputError.
  """
  try:
    yield
  except InputError as e:
    _print_input_error(e, prefix)
    sys.exit(INPUT_ERROR)


def _print_input_error(e: InputError, prefix: str = "error: ") -> None:
  print(f"{prefix}{e}", file=sys.stderr)


def model_overrides(student: str | None, teacher: str | None) -> dict[str, object]:
  """Makes the config overrides of --student and --teacher; a teacher that is given is the only one."""
  overrides: dict[str, object] = {}
  if student is not None:
    overrides["student"] = student
  if teacher is not None:
    overrides["teacher"] = teacher
  if teacher:
    overrides["teachers"] = ()
  return overrides


def output_directory(out: str) -> pathlib.Path:
  """Makes the directory of --out where it is missing, so that a command finds out before it does any work.

  Raises:
    InputError: where it cannot be made or written.
  """
  path = pathlib.Path(out)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--out={out} cannot be made ({e.strerror}); give a directory.") from None
  if not os.access(path, os.W_OK):
    raise InputError(f"--out={out} cannot be written: there is no permission in it.")
  return path


def _define_processes(values: flags.FlagValues) -> None:
  note = "one of several processes; not needed on TPU slices, Slurm, Open MPI"
  flags.DEFINE_string("coordinator", None, f"HOST:PORT of process 0; {note}", flag_values=values)
  flags.DEFINE_integer("processes", None, f"how many there are; {note}", flag_values=values)
  flags.DEFINE_integer("process", None, f"which this is, from 0; {note}", flag_values=values)
  flags.DEFINE_float(
    "silence", 30.0, "seconds without a sign of life after which a process is lost", flag_values=values
  )


def _joined():
  """Returns opd_jax.runtime.hosts where this process is one of several, else None."""
  hosts = sys.modules.get("opd_jax.runtime.hosts")
  return hosts if hosts and hosts.joined() else None


def _tell_others(e: BaseException) -> None:
  """Tells other processes of the error and ends this one at once, since JAX's own exit would wait for them."""
  if hosts := _joined():
    hosts.leave(e)
    sys.stderr.flush()
    sys.stdout.flush()
    if isinstance(e, InputError):
      os._exit(INPUT_ERROR)
    os._exit(130 if isinstance(e, KeyboardInterrupt) else 1)


def of_method(argv: Sequence[str], spec: str | None) -> Config:
  """Loads --config=FILE[:SCALE]; POPD where it is not given."""
  return configs.load(spec or "popd")


def of_workdir(argv: Sequence[str], spec: str | None) -> Config:
  """Loads the config that --workdir was made with; without a workdir, --config or the defaults."""
  from opd_jax.runtime import bucket, workdir

  for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
    if named := re.fullmatch(r"--?workdir(?:=(.*))?", arg):
      if spec:
        raise InputError(
          "A --workdir has its config with it: leave --config out, and override keys with --config.KEY=VALUE."
        )
      return workdir.load_config(bucket.MirroredDir(named[1] if named[1] is not None else after).fetch())
  return configs.load(spec) if spec else configs.default()


def parse(argv: Sequence[str], usage: str, define: Callable, source: Source) -> tuple[flags.FlagValues, Config]:
  """Parses the flags, and the config with its overrides.

  Raises:
    InputError: a flag, a config key or a value that cannot be used.
  """
  values = flags.FlagValues()
  flags.DEFINE_bool("help", False, "show this help", flag_values=values)
  define(values)
  spec = next((a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)), None)
  if spec is None and any(a in ("--config", "-config") for a in argv):
    raise InputError("Write the config as --config=FILE, with an equals sign.")
  c = source(argv, spec)
  argv = [a for a in argv if not re.match(r"--?config=", a)]
  c = _with_recipe(c, argv)
  known = configs.flat(c.to_dict())
  for key in (m[1] for a in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))):
    if key not in known:
      raise configs.unknown_key(c, key)
  try:
    config_flags.DEFINE_config_dict("config", c, flag_values=values, lock_config=True, sys_argv=list(argv))
    positional = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise InputError(" ".join(str(e).split()).rstrip(".") + ".") from None
  if values["help"].value:
    print(usage.strip(), "\n\nConfig keys (override with --config.KEY=VALUE):\n")
    meanings = configs.meanings(c.recipe)
    for key, value in known.items():
      print(f"  {key} = {value!r}" + (f"    {meanings[key]}" if key in meanings else ""))
    for name in sorted(n for n in values if n not in ("help", "config") and not n.startswith("config.")):
      print(f"\n  --{name}: {values[name].help}", end="")
    print()
    sys.exit(0)
  if len(positional) > 1:
    raise InputError(f"The argument {positional[1]!r} belongs to no flag; flags are written --NAME=VALUE.")
  return values, values["config"].value


def _with_recipe(config: Config, argv: Sequence[str]) -> Config:
  """Gives the config the keys of the recipe that the overrides ask for; canonical contexts are CCOPD's."""
  matches = [m for a in argv if (m := re.match(r"--?config\.(recipe|context\.kind)=(.*)", a))]
  named: dict[str, str] = {m[1]: m[2] for m in matches}
  recipe = str(named.get("recipe", config.recipe))
  if recipe == "opd" and named.get("context.kind") == "canonical":
    recipe = "ccopd"
  return config if recipe == config.recipe else configs.with_recipe(config, recipe)


def quiet() -> None:
  """Sets the environment before JAX is there, and keeps the libraries' chatter off the terminal."""
  xla.configure()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  warnings.filterwarnings("ignore", category=UserWarning, module=r"(orbax|jax|grain).*")
  for name in ("absl", "orbax", "jax", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)
