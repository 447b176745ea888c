"""Which verifiers a config names."""

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError


def verifier_name(config: Config, path: str) -> str:
  """Returns the verifier's name, `data.verifier`; "auto" is the built-in task's own, and gsm8k for a file."""
  if config.data.verifier != "auto":
    return config.data.verifier
  return path.removeprefix(configs.TASK) if path.startswith(configs.TASK) else "gsm8k"


def reward_verifiers(config: Config) -> tuple[str, ...]:
  """Returns the names of the verifiers whose verdicts make the reward; "auto" is what it is in `data.verifier`.

  Raises:
    InputError: "auto" is another one for each of several sources.
  """
  names = tuple(config.reward.verifiers) or (config.data.verifier,)
  if "auto" not in names:
    return names
  automatic = configs.override(config, {"data.verifier": "auto"})
  found = list(dict.fromkeys(verifier_name(automatic, path) for path in configs.data_paths(config)))
  if len(found) > 1:
    raise InputError(
      f"config.data.paths are verified by {' and '.join(map(repr, found))}, and rewards have one verifier for all; name it in "
      "config.data.verifier."
    )
  return tuple(found[0] if name == "auto" else name for name in names)
