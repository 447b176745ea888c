"""The files of a workdir as a report takes them: metrics.jsonl, config.json and run.json, each value as it has to be.

What is drawn and averaged is checked here, so that a damaged file ends in a sentence with its line, and in no half page.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from opd_jax.config import flat
from opd_jax.data.replay import COUNTS
from opd_jax.errors import InputError, brief
from opd_jax.runtime import json_files
from opd_jax.runtime.json_files import is_number, is_whole

AGAIN = "train again into a new workdir, or restore the file"


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """Read config.json, with dotted keys.

  Raises:
    InputError: there is none, it is no config, or a value that a report needs is none.
  """
  config = flat(_read_object(path))
  if "horizon.kind" not in config:
    raise InputError(f"{path} has no horizon.kind: name a workdir that opd_jax.train has written.")
  for key, (fits, meaning) in _CONFIG.items():
    if key in config and not fits(config[key]):
      raise InputError(f"{path} has {brief(config[key])} for {key!r}, which has to be {meaning}: {AGAIN}.")
  return config


def read_info(path: pathlib.Path) -> dict[str, Any]:
  """Read run.json; empty where there is none.

  Raises:
    InputError: it is not what a run writes.
  """
  info = _read_object(path) if path.is_file() else {}
  programs, versions = info.get("programs") or [], info.get("versions") or {}
  if not isinstance(programs, list) or not all(map(_is_program, programs)):
    raise InputError(f"{path} has compiled programs without a name, a width and seconds: {AGAIN}.")
  for key, value in (("versions", versions), ("outcome", info.get("outcome") or {})):
    if not isinstance(value, dict) or not all(isinstance(v, str) or _amount(v) for v in value.values()):
      raise InputError(f"{path} has {brief(value)} for {key!r}, which has to be an object of plain values: {AGAIN}.")
  if not isinstance(info.get("changes", []), list) or not all(map(_is_change, info.get("changes", []))):
    raise InputError(f"{path} has changes of the config without a step, a key and two values: {AGAIN}.")
  return info | {"programs": programs, "versions": versions} if info else info


def read_records(path: pathlib.Path) -> tuple[list[dict], list[dict], bool]:
  """Read metrics.jsonl: training records and evaluations by step and model, and whether the last line was cut short.

  Raises:
    InputError: a line that no run writes.
  """
  found: dict[str, dict[tuple[int, str], dict]] = {kind: {} for kind in _NEEDED}
  try:
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
  except OSError as e:
    raise InputError(f"{path} cannot be read ({e.strerror}): check its permissions.") from None
  cut_short = False
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json_files.parse(line)
    except json_files.NotReadable:
      record = None
    if not isinstance(record, dict):
      if number < len(lines):
        raise InputError(
          f"Line {number} of {path} is not a JSON object: delete the line, or train again into a new workdir."
        )
      cut_short = True
    elif (kind := record.get("kind")) in ("train", "eval"):
      _check(record, kind, f"Line {number} of {path}")
      # A resumed run may repeat steps: the later record is the one that went on.
      found[kind][record["step"], record.get("model") or ""] = _of_all_rollouts(record)
  train, evals = ([records[place] for place in sorted(records)] for records in found.values())
  return train, evals, cut_short


def _check(record: dict, kind: str, where: str) -> None:
  for key in _NEEDED[kind]:
    if record.get(key) is None:
      raise InputError(f"{where} has no value for {key!r}: train again with this version of opd_jax.")
  for key, (fits, meaning) in _VALUES[kind].items():
    if record.get(key) is not None and not fits(record[key]):
      raise InputError(f"{where} has {brief(record[key])} for {key!r}, which has to be {meaning}: {AGAIN}.")


def _of_all_rollouts(record: dict) -> dict:
  """Put in the place of what the rollouts earned that a step has chosen to learn from what all of them earned."""
  sampled = {name: record.get(f"{name}_sampled") for name in ("reward", "groups_by_solve_rate")}
  return record | {name: value for name, value in sampled.items() if value is not None}


# What a report needs of every record, by its kind.
_NEEDED = {
  "train": ("step", "tokens", "elapsed", "limit", "width", "seconds"),
  "eval": ("step", "tokens", "elapsed", "accuracy", "low", "high"),
}


def _amount(value: Any) -> bool:
  return is_number(value) and 0 <= value < 1e15


def _share(value: Any) -> bool:
  return is_number(value) and -1 <= value <= 2  # an interval may go beyond 0 and 1


def _is_seconds(value: Any) -> bool:
  # Seconds of one part may be booked under another, so that a step's are below 0.
  return isinstance(value, dict) and all(is_number(v) and abs(v) < 1e15 for v in value.values())


def _is_pass(value: Any) -> bool:
  return isinstance(value, dict) and all(isinstance(v, dict) and _share(v.get("value")) for v in value.values())


def _is_accuracy(value: Any) -> bool:
  return isinstance(value, dict) and _share(value.get("accuracy"))


def _is_lengths(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_amount, value.values()))


def _is_by_position(value: Any) -> bool:
  """Tell whether values by position have edges of bins, rising, and as many counts and, if any, divergences as bins."""
  if not isinstance(value, dict):
    return False
  edges, count = value.get("edges"), value.get("count")
  if not isinstance(edges, list) or not isinstance(count, list) or len(edges) < 2:
    return False
  kl = value.get("kl", [None] * len(count))
  if not isinstance(kl, list) or not len(edges) - 1 == len(count) == len(kl) or not all(map(_amount, [*edges, *count])):
    return False
  return edges == sorted(set(edges)) and all(v is None or (is_number(v) and abs(v) < 1e15) for v in kl)


def _is_groups(value: Any) -> bool:
  return isinstance(value, list) and len(value) > 1 and all(map(_amount, value))


def _is_history(value: Any) -> bool:
  """Tell whether a buffer's history has of each of its counts as many numbers."""
  if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in COUNTS):
    return False
  return len({len(value[name]) for name in COUNTS}) == 1 and all(_amount(n) for name in COUNTS for n in value[name])


def _is_by_mu(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 10 and all(v is None or _amount(v) for v in value)


def _is_program(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and isinstance(value.get("name"), str)
    and _amount(value.get("seconds", 0))
    and _amount(value.get("bytes") or 0)
  )


def _is_change(value: Any) -> bool:
  return isinstance(value, dict) and {"step", "key", "from", "to"} <= value.keys() and is_whole(value["step"])


_Values = dict[str, tuple[Callable[[Any], bool], str]]
_AMOUNT = (_amount, "a number of at least 0")
_SHARE = (_share, "a share between 0 and 1")
_NUMBER = (lambda value: is_number(value) and abs(value) < 1e15, "a number")
_STEP = (lambda value: is_whole(value), "a whole number")
_NAME = (lambda value: isinstance(value, str), "a name")
_SECONDS = (_is_seconds, "seconds by part")
_BINS = (_is_by_position, "edges of positions with a count and a divergence between each two")
_GROUPS = (_is_groups, "counts of groups by the number of their solved rollouts")
_HISTORY = (_is_history, "counts of a buffer by tier")
_BY_MU = (_is_by_mu, "ten values by the probability of the drawn token")
_EVERY: _Values = {"step": _STEP, "tokens": _AMOUNT, "elapsed": _AMOUNT, "wall": _AMOUNT}
_OF_BUFFER = (
  *("hard", "buffer", "reward_replayed", "teacher_right", "prompts_bcq", "reward_bcq", "prompts_ncq", "reward_ncq"),
  *("bcq_repeats_right", "bcq_repeats_wrong", "ncq_repeats_wrong"),
  *("plain_tokens", "reformulated_tokens", "teacher_tokens", "compression_tokens"),
)
_VALUES: dict[str, _Values] = {
  "train": _EVERY
  | {"model": _NAME}
  | {"limit": _AMOUNT, "width": _AMOUNT, "seconds": _SECONDS, "by_position": _BINS, "response_length": _AMOUNT}
  | {"loss": _NUMBER, "kl": _NUMBER}
  | {"ended": _SHARE, "cut": _SHARE, "trained": _AMOUNT}
  # of a run that learns from a reward
  | {"reward": _NUMBER, "teaching_groups": _SHARE, "groups_by_solve_rate": _GROUPS, "resampled": _AMOUNT}
  | {"reward_sampled": _NUMBER, "groups_by_solve_rate_sampled": _GROUPS}
  | {"verifier_timeouts": _AMOUNT, "student_entropy": _NUMBER, "initial_kl": _NUMBER, "rare": _SHARE, "beyond": _SHARE}
  | {"moved": _AMOUNT, "moved_by_mu": _BY_MU, "ratio": _AMOUNT, "ratio_max": _AMOUNT, "logprob_gap": _AMOUNT}
  | {"buffer_history": _HISTORY}
  | dict.fromkeys(_OF_BUFFER, _NUMBER)
  | {"gradient_weight": _NUMBER, "gradient_weight_min": _NUMBER, "gradient_weight_max": _NUMBER},
  "eval": _EVERY
  | {"model": _NAME}
  | {"accuracy": _SHARE, "low": _SHARE, "high": _SHARE, "seconds": _AMOUNT}
  | {"pass": (_is_pass, "a value by k"), "k": _STEP, "prompts": _STEP, "ended": _SHARE}
  | {"length": (_is_lengths, "numbers of tokens by name"), "greedy": (_is_accuracy, "an accuracy by name")},
}
_CONFIG: _Values = {
  "horizon.kind": (lambda value: isinstance(value, str), "a word"),
  "steps": (lambda value: is_whole(value), "a whole number"),
  "horizon.ratio": _AMOUNT,
  "horizon.length": (lambda value: is_whole(value), "a whole number"),
  "horizon.max": (lambda value: is_whole(value), "a whole number"),
}


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json_files.load_object(path, AGAIN)
  except FileNotFoundError:
    raise InputError(f"{path.parent} has no {path.name}: name a workdir that opd_jax.train has written.") from None
