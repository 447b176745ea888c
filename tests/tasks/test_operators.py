"""Running sums and differences: problems of two domains, what specialists get wrong, and what they say of a response."""

import random

import pytest

from opd_jax import tasks
from opd_jax.context.comments import Comments, Outcome
from opd_jax.tasks import operators
from opd_jax.tasks.chain import TRUTH, Beliefs
from opd_jax.tasks.operators import OPERATORS, comment, convinced, specialist


def test_problems_are_repeatable_held_out_and_of_both_domains():
  train, held_out = OPERATORS.problems(200, seed=0), OPERATORS.problems(200, seed=0, held_out=True)
  assert train == OPERATORS.problems(200, seed=0)
  assert not {p.prompt for p in train} & {p.prompt for p in held_out}
  assert {p.domain for p in train} == set(operators.DOMAINS)
  for problem in train:
    assert operators.DOMAINS[problem.domain] in problem.prompt
    assert len(problem.prompt) == OPERATORS.max_prompt
    assert len(problem.solution) + 1 == OPERATORS.max_response
    assert eval(problem.prompt[:-1]) % 10 == int(problem.answer)
    assert OPERATORS.verify(problem.solution, problem.answer)


def test_only_a_closed_answer_counts():
  assert OPERATORS.verify("5+8=3#3", "3")
  assert not OPERATORS.verify("5+8=3#3", "3", ended=False)
  assert not OPERATORS.verify("5+8=3", "3")
  assert not OPERATORS.verify("5+8=3#4", "3")
  assert tasks.generator("operators") is OPERATORS


@pytest.mark.parametrize("domain", operators.DOMAINS)
def test_a_specialist_knows_one_domain(domain):
  rng, right = random.Random(0), {name: [] for name in operators.DOMAINS}
  for _ in range(600):
    problem = OPERATORS.problem(rng, False, specialist(domain))
    right[problem.domain].append(OPERATORS.verify(problem.solution, problem.answer))
  share = {name: sum(found) / len(found) for name, found in right.items()}
  (other,) = operators.DOMAINS.keys() - {domain}
  assert share[domain] > 0.8
  assert share[other] < 0.6


def test_a_comment_goes_through_the_steps_to_the_first_that_its_author_holds_to_be_wrong():
  assert comment("5+8=3,3+3=7,7+9=6#6") == ">5>5+8=3,3+3=6"
  assert comment("5+8=3,3+3=6,6+9=1#1") == ">5>5+8=3,3+3=6,6+9=", "the last result is the answer, and is not given away"
  assert comment("5+8=3,3+3=6#6") == ">5>5+8=3,3+3="
  wrong = Beliefs({(5, "+", 8): (4, 0.9)})
  assert comment("5+8=3,3+3=7,7+9=6#6", wrong) == ">5>5+8=4"
  assert comment("#6") == ""


def test_a_verifier_may_comment_as_one_who_knows_everything():
  assert operators.explain("5+8=3,3+3=7,7+9=6#6", "5") == (False, "55+8=3,3+3=6")
  assert operators.explain("5+8=3,3+1=4#4", "4") == (True, "55+8=3,3+1=")
  assert tasks.verifier("opd_jax.tasks.operators:explain")("5+8=3#3", "3", ended=False) == (False, "55+8=")


def test_somebody_who_is_convinced_writes_the_fact_that_was_stated():
  doubtful = Beliefs({(5, "+", 8): (4, 1.0)})
  rng = random.Random(0)
  assert OPERATORS.solution(rng, "5+8+1=", doubtful) == "5+8=4,4+1=5#5"
  assert OPERATORS.solution(rng, "5+8+1=", convinced(doubtful, ">8>5+8=3")) == "5+8=3,3+1=4#4"
  assert convinced(doubtful, ">5>5+8=") == doubtful
  assert convinced(doubtful, "55+8=3,3+1=") == convinced(doubtful, "5+8=3"), (
    "the first term stands before the first step"
  )
  assert OPERATORS.solution(rng, "5+8+1=", TRUTH) == "5+8=3,3+1=4#4"


def test_comments_pass_the_filter_of_peers_comments():
  filters = Comments("{prompt}{response}a", ">{text}>", "options")
  kept = filters.sanitised(">8>5+8=3", "5+8+1=")
  assert (kept.text, kept.outcome) == ("85+8=3", Outcome.KEPT)
  assert filters.sanitised(">7>5+8=3", "5+8+1=").outcome is Outcome.FOREIGN
  assert filters.sanitised("5+8=3", "5+8+1=").outcome is Outcome.UNANCHORED
