"""Verifiable problems: where prompts come from and how an answer is verified.

A task has a generator of problems and a verifier; a file of prompts needs a verifier only. Both are looked up by name, a
verifier also by the import path or the file of a function (own.py). `VERIFIERS` is the table of all that have a name.
"""

from collections.abc import Callable, Hashable, Sequence

from opd_jax.errors import InputError
from opd_jax.tasks import answers, chain, expressions, gsm8k, own, puzzles, relay
from opd_jax.tasks.operators import OPERATORS
from opd_jax.tasks.problem import AnswerExtractor, Task, Verifier
from opd_jax.tasks.puzzles import COUNTDOWN, COUNTDOWN_4, SUDOKU
from opd_jax.tasks.scenes import COUNT, MAJORITY, SCENES
from opd_jax.tasks.subsets import OTHER_SUBSETS, SUBSETS
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
  OPERATORS,
  SUDOKU,
  COUNTDOWN,
  COUNTDOWN_4,
  SUBSETS,
  OTHER_SUBSETS,
  SCENES,
  MAJORITY,
  COUNT,
)
GENERATORS = {task.name: task for task in TASKS}

VERIFIERS: dict[str, Verifier] = {name: task.verify for name, task in GENERATORS.items()}
VERIFIERS |= {
  "gsm8k": gsm8k.verify,
  "math": gsm8k.verify,  # the same: it reads boxes and compares expressions
  "exact": answers.exact,
  "regex": answers.Pattern(),  # of data.answer_pattern
  "multiple_choice": answers.multiple_choice,
  "json": answers.same_json,
  "valid_json": answers.valid_json,
}

ANSWER_EXTRACTORS: dict[str, AnswerExtractor] = {
  task.name: task.extract_answer for task in (relay.RELAY, relay.TIMES, relay.LONG)
} | dict.fromkeys(("gsm8k", "math"), gsm8k.extract_answer)

# What is one state of a response after some steps, where rollouts branch: (prompt, text so far, whether it has ended) -> state, or None.
StateKey = Callable[[str, str, bool], Hashable | None]
STATE_KEYS: dict[str, StateKey] = dict.fromkeys((COUNTDOWN.name, COUNTDOWN_4.name), puzzles.remaining)

# Reference -> its answer; elsewhere it is that.
FINAL_ANSWERS: dict[str, Callable[[str], str]] = dict.fromkeys(("gsm8k", "math"), gsm8k.gold)
# References -> the numbers of those that no response would match but in the same words, and how many were examined.
UNMATCHED: dict[str, Callable[[Sequence[str]], tuple[list[int], int]]] = dict.fromkeys(
  ("gsm8k", "math"), gsm8k.unmatched
)
# The same of verifiers by which no response at all would match, and what a reference lacks.
MEANINGLESS: dict[str, tuple[Callable[[Sequence[str]], tuple[list[int], int]], str]] = {
  "multiple_choice": (answers.no_choice, "the letter of a choice, such as B or (B)"),
  "json": (answers.not_json, "JSON, in which text stands in quotes"),
}
# Loads what a verifier needs only for some answers, so that the first of these takes no longer than others.
PREPARE: dict[str, Callable[[], None]] = dict.fromkeys(("gsm8k", "math"), expressions.prepare)


def generator(name: str) -> Task:
  """Look up a built-in task by its name.

  Raises:
    InputError: there is none of that name; lists those that there are.
  """
  if name not in GENERATORS:
    raise InputError(f"There is no built-in task {name!r}; config.data.path can be {_tasks()}, or a file of problems.")
  return GENERATORS[name]


def verifier(name: str, pattern: str = "") -> Verifier:
  """Look up a verifier by its name, or import it by its path.

  Args:
    pattern: of "regex", see config.data.answer_pattern.

  Raises:
    InputError: there is none of that name, with a list of those that there are; or none at that path, see own.load.
  """
  if is_own(name):
    return own.load(name)
  if name not in VERIFIERS:
    raise InputError(
      f"There is no verifier {name!r}; config.data.verifier can be 'auto', {', '.join(map(repr, VERIFIERS))}, or the import "
      "path of a function, my_module:verify, or its file, verify.py:verify."
    )
  found = VERIFIERS[name]
  return found.of(pattern) if isinstance(found, answers.Pattern) else found


def state_key(name: str, task: str) -> StateKey:
  """Look up what tells which responses so far are one state: a task's, or a function by its import path.

  Args:
    name: "auto", or module:function.
    task: the name of the task, of "auto".

  Raises:
    InputError: the task has none, or there is no such function.
  """
  if name == "auto":
    if task not in STATE_KEYS:
      raise InputError(
        f"config.graph.state is 'key', and {task!r} does not say what one state is; the tasks that do are {', '.join(STATE_KEYS)}. Name a "
        "function in config.graph.state_key, or set config.graph.state=hidden."
      )
    return STATE_KEYS[task]
  if not own.is_path(name):
    raise InputError(
      f"config.graph.state_key is {name!r}; it can be 'auto', or a function's import path, my_module:state, or its file, state.py:state."
    )
  return own.function(
    name,
    "state key",
    "a function is needed that takes a prompt, the text so far and whether it has ended, and returns what names the state, or None",
    "state",
  )


def is_own(name: str) -> bool:
  """Tell whether a name is that of a user's function."""
  return name not in VERIFIERS and own.is_path(name)


def reads_record(name: str) -> bool:
  """Tell whether a verifier takes the whole record of a problem; arguments and errors as of `verifier`."""
  return own.reads_record(VERIFIERS[name] if name in VERIFIERS else verifier(name))


def _tasks() -> str:
  """The values of config.data.path that name built-in tasks, for messages."""
  return ", ".join(f"'task:{name}'" for name in GENERATORS)
