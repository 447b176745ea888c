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
from opd_jax.errors import INTERRUPTED, InputError, StopRequested
from opd_jax.runtime import interrupts, supervise, xla

Source = Callable[[Sequence[str], str | None], Config]  # (arguments, --config or None) -> the config to override
INPUT_ERROR = 2  # exit status of a command that was given a wrong input


def main(
  run: Callable[[flags.FlagValues, Config], int | None],
  usage: str,
  define: Callable,
  source: Source,
  several: bool = False,
) -> None:
  """Parses sys.argv and calls `run(flags, config)`, which may return a status to end with.

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
    with supervise.supervised(joins), interrupts.handled():
      try:
        if joins:
          from opd_jax.runtime import hosts

          hosts.start(values.coordinator, values.processes, values.process, values.silence)
        status = run(values, c) or 0
      except StopRequested as e:
        interrupts.say(f"{e}; the same command goes on")
        status = e.status
      if hosts := _joined():
        hosts.finish()
  except InputError as e:
    _print_input_error(e)
    status = INPUT_ERROR
    _tell_others(e)
  except KeyboardInterrupt as e:
    interrupts.say(str(e) or "stopped")
    status = INTERRUPTED
    _tell_others(e)
  except Exception as e:
    if not _joined():
      raise
    traceback.print_exc()
    _tell_others(e)
  # What a run writes is complete. The threads of a store that come out of C++ while Python takes itself down would abort it.
  interrupts.leave(status, at_once="tensorstore" in sys.modules)


@contextlib.contextmanager
def reporting_the_end(stopped: str = "stopped", prefix: str = "error: ") -> Iterator[None]:
  """Ends a command of one process, whose flags are its own, with one sentence and a status where the block cannot go on.

  Args:
    stopped: what is said after Ctrl-C where no run says what it has saved.
    prefix: of the sentence of an InputError.

  Raises:
    SystemExit: with status 2 for a wrong input, RESUME or INTERRUPTED for a run that was asked to stop.
  """
  try:
    with interrupts.handled():
      yield
  except InputError as e:
    _print_input_error(e, prefix)
    sys.exit(INPUT_ERROR)
  except StopRequested as e:
    interrupts.say(f"{e}; the same command goes on")
    interrupts.leave(e.status)
  except KeyboardInterrupt as e:
    interrupts.say(str(e) or stopped)
    interrupts.leave(INTERRUPTED)


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
  path = configs.expanded_path(out)
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
    os._exit(INTERRUPTED if isinstance(e, KeyboardInterrupt) else 1)


def of_method(argv: Sequence[str], spec: str | None) -> Config:
  """Loads --config=FILE[:SCALE]; POPD where it is not given."""
  return configs.load(spec or "popd")


def of_run(argv: Sequence[str], spec: str | None) -> Config:
  """Loads --config=FILE[:SCALE]; without it, the config that --workdir was made with, and POPD for a new workdir."""
  named = _workdir_of(argv)
  if spec or not named:
    return of_method(argv, spec)
  from opd_jax.runtime import bucket, workdir

  path = bucket.MirroredDir(named).fetch()
  if not (path / "config.json").is_file():
    return of_method(argv, spec)
  print(f"config of {named}, since there is no --config", file=sys.stderr)
  return workdir.load_config(path)


def of_workdir(argv: Sequence[str], spec: str | None) -> Config:
  """Loads the config that --workdir was made with; without a workdir, --config or the defaults."""
  if named := _workdir_of(argv):
    if spec:
      raise InputError(
        "A --workdir has its config with it: leave --config out, and override keys with --config.KEY=VALUE."
      )
    from opd_jax.runtime import bucket, workdir

    return workdir.load_config(bucket.MirroredDir(named).fetch())
  return configs.load(spec) if spec else configs.default()


def _workdir_of(argv: Sequence[str]) -> str | None:
  """Returns the value of --workdir, before the flags are parsed; None where it is not given."""
  for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
    if named := re.fullmatch(r"--?workdir(?:=(.*))?", arg):
      return named[1] if named[1] is not None else after
  return None


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
  c, argv = _with_mappings(_with_recipe(c, argv), argv)
  known = configs.flat(c)
  for key in (m[1] for a in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))):
    if key not in known:
      raise configs.unknown_key(c, key)
  try:
    config_flags.DEFINE_config_dict("config", c, flag_values=values, lock_config=True, sys_argv=list(argv))
    positional = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(e), re.DOTALL):
      raise configs.refusal(c, match[1], match[2]) from None
    raise InputError(" ".join(str(e).split()).rstrip(".") + ".") from None
  if values["help"].value:
    print(usage.strip(), "\n\nConfig keys (override with --config.KEY=VALUE):\n")
    table = configs.table(c.recipe)
    for key, value in known.items():
      print(f"  {key} = {value!r}    {table[key].meaning}    ({table[key].notation or 'a value of this type'})")
    for name in sorted(n for n in values if n not in ("help", "config") and not n.startswith("config.")):
      print(f"\n  --{name}: {values[name].help}", end="")
    print()
    sys.exit(0)
  if len(positional) > 1:
    raise InputError(f"The argument {positional[1]!r} belongs to no flag; flags are written --NAME=VALUE.")
  config = values["config"].value
  configs.check(config)
  return values, config


def _with_recipe(config: Config, argv: Sequence[str]) -> Config:
  """Gives the config the keys of the recipe that the overrides ask for; canonical contexts are CCOPD's."""
  matches = [m for a in argv if (m := re.match(r"--?config\.(recipe|context\.kind)=(.*)", a))]
  named: dict[str, str] = {m[1]: m[2] for m in matches}
  recipe = str(named.get("recipe", config.recipe))
  if recipe == "opd" and named.get("context.kind") == "canonical":
    recipe = "ccopd"
  return config if recipe == config.recipe else configs.with_recipe(config, recipe)


def _with_mappings(config: Config, argv: Sequence[str]) -> tuple[Config, list[str]]:
  """Sets the entries of a config's dictionaries, whose names no flag can have known, and returns the other arguments."""
  others: list[str] = []
  for arg in argv:
    named = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", arg, re.DOTALL)
    if not named or not configs.mapping_of(named[1]):
      others.append(arg)
    elif named[2] is None:
      raise InputError(f"Write the key as --config.{named[1]}=VALUE, with an equals sign.")
    else:
      config = configs.override(config, {named[1]: configs.parse_mapping(named[1], named[2])})
  return config, others


def quiet() -> None:
  """Sets the environment before JAX is there, and keeps the libraries' chatter off the terminal."""
  xla.configure()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  warnings.filterwarnings("ignore", category=UserWarning, module=r"(orbax|jax|grain).*")
  for name in ("absl", "orbax", "jax", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)
