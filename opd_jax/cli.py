"""The command line that the entry points share: --config=FILE[:SCALE] and --config.KEY=VALUE overrides.

Overrides are parsed by ml_collections against the types of the defaults; a wrong input ends in one sentence and
status 2, never in a traceback.
"""

import itertools
import logging
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError

Source = Callable[[Sequence[str], str | None], Config]  # (arguments, --config or None) -> the config to override


def main(run: Callable[[flags.FlagValues, Config], None], usage: str, define: Callable, source: Source) -> None:
  """Parses sys.argv and calls `run(flags, config)`.

  Args:
    usage: what --help prints before the flags.
    define: adds the entry point's own flags to a FlagValues.
    source: where the config comes from, `of_method` or `of_workdir`.
  """
  quiet()
  try:
    values, c = parse(sys.argv, usage, define, source)
    run(values, c)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    sys.exit(130)


def of_method(argv: Sequence[str], spec: str | None) -> Config:
  """--config=FILE[:SCALE]; POPD where it is not given."""
  return configs.load(spec or "popd")


def of_workdir(argv: Sequence[str], spec: str | None) -> Config:
  """The config that --workdir was made with; without a workdir, --config or the defaults."""
  from opd_jax import workdir

  for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
    if named := re.fullmatch(r"--?workdir(?:=(.*))?", arg):
      if spec:
        raise InputError(
          "A --workdir has its config with it: leave --config out, and override keys with --config.KEY=VALUE."
        )
      return workdir.load_config(pathlib.Path(named[1] if named[1] is not None else after))
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
  """Keeps the libraries' chatter off the terminal; warnings of our own go through the metrics."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  warnings.filterwarnings("ignore", category=UserWarning, module=r"(orbax|jax|grain).*")
  for name in ("absl", "orbax", "jax", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)
