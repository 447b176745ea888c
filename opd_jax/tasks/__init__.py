"""Verifiable problems: where prompts come from and how an answer is verified.

A task has a generator of problems and a verifier; a file of prompts needs a verifier only. Both are looked up by name, a
verifier also by the import path of a function (own.py).
"""

from collections.abc import Callable, Sequence

from opd_jax.errors import InputError
from opd_jax.tasks import chain, expressions, gsm8k, own, relay
from opd_jax.tasks.problem import AnswerExtractor, Task, Verifier
from opd_jax.tasks.synonyms import RUNNING_SUMS

TASKS: tuple[Task, ...] = (
  chain.CHAIN,
  chain.PHASE,
  chain.SHORT,
  chain.SHORT_PHASE,
  relay.RELAY,
  relay.TIMES,
  relay.LONG,
  RUNNING_SUMS,
)
GENERATORS = {task.name: task for task in TASKS}

VERIFIERS: dict[str, Verifier] = {name: task.verify for name, task in GENERATORS.items()}
VERIFIERS["gsm8k"] = gsm8k.verify

ANSWER_EXTRACTORS: dict[str, AnswerExtractor] = {
  task.name: task.extract_answer for task in (relay.RELAY, relay.TIMES, relay.LONG)
} | {"gsm8k": gsm8k.extract_answer}

FINAL_ANSWERS: dict[str, Callable[[str], str]] = {"gsm8k": gsm8k.gold}  # reference -> its answer; elsewhere it is that
# References -> the numbers of those that no response would match but in the same words, and how many were examined.
UNMATCHED: dict[str, Callable[[Sequence[str]], tuple[list[int], int]]] = {"gsm8k": gsm8k.unmatched}
# Loads what a verifier needs only for some answers, so that the first of these takes no longer than others.
PREPARE: dict[str, Callable[[], None]] = {"gsm8k": expressions.prepare}


def generator(name: str) -> Task:
  """Look up a built-in task by its name.

  Raises:
    InputError: there is none of that name; lists those that there are.
  """
  if name not in GENERATORS:
    raise InputError(f"There is no built-in task {name!r}; config.data.path can be {_tasks()}, or a JSONL file.")
  return GENERATORS[name]


def verifier(name: str) -> Verifier:
  """Look up a verifier by its name, or import it by its path.

  Raises:
    InputError: there is none of that name, with a list of those that there are; or none at that path, see own.load.
  """
  if name not in VERIFIERS and own.is_path(name):
    return own.load(name)
  if name not in VERIFIERS:
    raise InputError(
      f"There is no verifier {name!r}; config.data.verifier can be 'auto', {', '.join(map(repr, VERIFIERS))}, or the import "
      "path of a function, my_module:verify."
    )
  return VERIFIERS[name]


def _tasks() -> str:
  """The values of config.data.path that name built-in tasks, for messages."""
  return ", ".join(f"'task:{name}'" for name in GENERATORS)
