"""The built-in task: right solutions are accepted, everything else is not."""

import random

import pytest

from opd_jax.data import tokenizer as tokenizers
from opd_jax.models import hf
from opd_jax.tasks import GENERATORS, chain, generator, verifier

CHAINS = [task for task in GENERATORS.values() if isinstance(task, chain.Chain)]


@pytest.mark.parametrize("task", CHAINS, ids=lambda task: task.name)
def test_solutions_are_accepted_and_fit(task):
  for p in task.problems(300, seed=1):
    assert task.verify(p.solution, p.answer)
    assert len(chain.TOKENIZER.encode(p.prompt)) == task.max_prompt
    assert len(chain.TOKENIZER.encode(p.solution)) + 1 <= task.max_response


def test_a_solution_read_aloud():
  p = next(p for p in chain.CHAIN.problems(2000, seed=0) if p.prompt.endswith("x5="))
  a, b = int(p.prompt[0]), int(p.prompt[1])
  for line, left in zip(p.solution.split("\n"), range(5, 0, -1), strict=False):
    count, steps = line.split(":")
    assert int(count) == left
    for step, sign in zip(steps.split(","), p.prompt[2:6], strict=True):
      assert step[:3] == f"{a}{sign}{b}"
      a, b = b, (a + b if sign == "+" else a - b) % 10
      assert step[3:] == f"={b}"
  assert p.solution.endswith(f"#{a}{b}")
  assert p.answer == f"{a}{b}"


@pytest.mark.parametrize(
  ("response", "right"),
  [
    ("1:5+8=3\n#83", True),
    ("#83", True),
    ("#38", False),
    ("83", False),
    ("#833", False),
    ("#8", False),
    ("", False),
    ("#83#", False),
  ],
)
def test_chain_verifier(response, right):
  assert chain.CHAIN.verify(response, "83") is right


@pytest.mark.parametrize(
  ("response", "right"), [("#83>ba", True), ("#83>ab", False), ("#ba", False), ("#83", False), (">ba", False)]
)
def test_phase_verifier(response, right):
  assert chain.PHASE.verify(response, "ba") is right


def test_letters_are_a_permutation():
  assert sorted(chain.LETTERS) == list("abcdefghij")


def test_held_out_problems_are_never_trained_on():
  train = {p.prompt for p in chain.CHAIN.problems(4000, seed=0)}
  held_out = {p.prompt for p in chain.CHAIN.problems(500, seed=0, held_out=True)}
  assert held_out
  assert not train & held_out


def test_same_seed_same_problems():
  assert chain.CHAIN.problems(5, seed=3) == chain.CHAIN.problems(5, seed=3)
  assert chain.CHAIN.problems(5, seed=3) != chain.CHAIN.problems(5, seed=4)


def test_misconceptions_are_soft_and_wrong():
  beliefs = chain.misconceptions()
  assert len(beliefs.facts) == 30
  assert len(beliefs.letters) == 10
  for (a, sign, b), (wrong, chance) in beliefs.facts.items():
    assert wrong != chain.fact(a, sign, b)
    assert 0.4 <= chance <= 0.8
  solved = [chain.CHAIN.problem(random.Random(i), False, beliefs) for i in range(300)]
  right = sum(chain.CHAIN.verify(p.solution, p.answer) for p in solved) / 300
  assert 0.05 < right < 0.4


def test_facts_are_met_as_often_early_as_late():
  """What makes the trait independent of position: the first tenth of the responses shows all 200 facts."""
  seen = set()
  for p in chain.CHAIN.problems(3000, seed=5):
    seen |= {step[:3] for step in p.solution[2:26].split(",") if len(step) == 5}
  assert len(seen) == 200


@pytest.mark.parametrize(
  "role",
  ["student", "phase-student", "teacher", "short-student", "short-teacher", "short-exact-teacher", "short-pupil"],
)
def test_shipped_models_read_both_tasks(role):
  path = hf.resolve(f"builtin:{role}")
  hf.check_directory(path)
  tokenizer = tokenizers.load(path)
  for task in CHAINS:
    p = task.problems(1, seed=0)[0]
    text = p.prompt + p.solution
    ids = tokenizer(text)["input_ids"]
    assert ids == chain.TOKENIZER.encode(text)
    assert tokenizer.decode(ids) == text
  assert hf.stop_ids(path) == (chain.TOKENIZER.ids[chain.EOS],)
  assert sum(f.stat().st_size for f in path.iterdir()) < 4e6


def test_unknown_names_are_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="'task:chain', 'task:phase'"):
    generator("chess")
  with pytest.raises(ValueError, match="'gsm8k'"):
    verifier("chess")


def symbols(text: str) -> list[str]:
  return [*text, chain.EOS]


def test_the_right_symbol_follows_what_is_written():
  """58+-++x3=: 5+8=3; after a wrong 4, the next step is 8-4 = 4 and not 8-3 = 5."""
  p = next(p for p in chain.SHORT.problems(2000, seed=0) if p.prompt.startswith("58+-"))
  right = symbols(p.solution)
  assert chain.SHORT.right(p.prompt, right) == right
  at = p.solution.index("=") + 1
  assert p.solution[at - 4 : at + 6] == "5+8=3,8-3="
  wrong = [*p.solution[:at], "4", ",", "8", "-", "4", "="]
  found = chain.SHORT.right(p.prompt, [*wrong, "0"])
  assert "".join(found[at:]) == "3,8-4=4"


@pytest.mark.parametrize("task", [chain.SHORT, chain.SHORT_PHASE, chain.CHAIN, chain.PHASE], ids=lambda t: t.name)
def test_nothing_is_right_beyond_the_format(task):
  p = task.problems(1, seed=1)[0]
  out_of_format = [*p.solution[:5], "\n", *p.solution[5:]]
  assert task.right(p.prompt, out_of_format) == [*p.solution[:6]], "the symbol that leaves it can still be judged"
  assert task.right(p.prompt, [*symbols(p.solution), "5"]) == symbols(p.solution), "nothing follows the end"
  assert len(symbols(p.solution)) <= task.max_response


def test_who_slips_is_wrong_now_and_then_and_goes_on_from_it():
  rng = random.Random(0)
  wrong = total = 0
  for _ in range(50):
    p = chain.SHORT_PHASE.problem(rng, False, chain.slips(rng, 0.2))
    written = symbols(p.solution)
    right = chain.SHORT_PHASE.right(p.prompt, written)
    assert len(right) == len(written), "every slip stays in the format"
    facts = [i for i, s in enumerate(written) if written[i - 1] == "="]
    wrong += sum(written[i] != right[i] for i in facts)
    total += len(facts)
    assert all(written[i] == right[i] for i in range(len(written)) if i not in facts)
  assert 0.15 < wrong / total < 0.25
