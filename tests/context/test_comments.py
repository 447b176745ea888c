"""Comments of a peer: what is asked, what is kept, and what of an answer is removed."""

import pytest

from opd_jax import config as configs
from opd_jax.context.comments import Comments, Outcome, without_answers

QUESTION = "A block slides down a frictionless incline. Which quantity is conserved? A) momentum B) mechanical energy"


def comments(**changes) -> Comments:
  config = configs.override(configs.default("codistillation"), {f"comment.{k}": v for k, v in changes.items()})
  return Comments.from_config(config)


@pytest.mark.parametrize(
  ("text", "outcome", "kept"),
  [
    (
      "<concept>mechanical energy</concept> is mixed up with momentum.",
      "kept",
      "mechanical energy is mixed up with momentum.",
    ),
    ("<concept>Incline</concept>: look at the forces.", "kept", "Incline: look at the forces."),
    ("The incline matters.", "unanchored", ""),
    ("I think <concept>incline</concept> matters.", "unanchored", ""),
    ("<concept>the quantity of a frictionless incline</concept> matters.", "unanchored", ""),
    ("<concept></concept> matters.", "unanchored", ""),
    ("<concept>the question</concept> asks more.", "generic", ""),
    ("<concept>angular momentum transfer</concept> is wrong.", "kept", "angular momentum transfer is wrong."),
    ("<concept>entropy</concept> is wrong.", "foreign", ""),
    ("", "empty", ""),
    ("   ", "empty", ""),
  ],
)
def test_a_comment_begins_with_a_concept_of_the_question(text, outcome, kept):
  found = comments().sanitised(text, QUESTION)
  assert (found.outcome, found.text, found.stripped) == (Outcome(outcome), kept, False)


def test_a_cut_comment_is_dropped_and_an_anchor_may_be_done_without():
  assert comments().sanitised("<concept>incline</concept> and", QUESTION, ended=False).outcome is Outcome.CUT
  assert comments(anchor="").sanitised("Look again.", QUESTION).text == "Look again."
  assert comments(anchor="({text})").sanitised("(incline) matters", QUESTION).text == "incline matters"


@pytest.mark.parametrize(
  ("text", "left"),
  [
    (r"Energy is kept, so \boxed{B}. Momentum is not.", "Energy is kept, so . Momentum is not."),
    (r"So \boxed{\text{(B)}} it is.", "So it is."),
    ("**B** fits. So does **(C)**.", "fits. So does ."),
    ("Work it out. The final answer is 42. Check units.", "Work it out. Check units."),
    ("Work it out.\nThe correct option is B", "Work it out."),
    ("Option (B) is correct. Compare both.", "Compare both."),
    ("So the answer is B. Think of friction.", "Think of friction."),
    ("Energy is kept. **B) mechanical energy** fits.", "Energy is kept. fits."),
    # near-leaks stay
    ("The answer is not sound, it forgets friction.", "The answer is not sound, it forgets friction."),
    ("Your answer is wrong from the second line on.", "Your answer is wrong from the second line on."),
    ("The answer is in part correct.", "The answer is in part correct."),
    ("The right value of g was used.", "The right value of g was used."),
    (r"The sum \boxed{42} is right so far.", r"The sum \boxed{42} is right so far."),
    ("**Because** energy is kept, look at **heat**.", "**Because** energy is kept, look at **heat**."),
    ("A block has mass. Take plan B.", "A block has mass. Take plan B."),
    ("Your answer needs units.", "Your answer needs units."),
    ("The finals are over.", "The finals are over."),
  ],
)
def test_what_gives_an_answer_away_is_removed(text, left):
  assert without_answers(text) == left
  found = comments(anchor="").sanitised(text, QUESTION)
  assert found.stripped == (left != " ".join(text.split()))


def test_boxed_numbers_go_where_answers_are_numbers():
  assert without_answers(r"The sum is \boxed{42}, then #### 42 and more", "answer") == "The sum is , then and more"
  assert without_answers("The final answer is 42.", "none") == "The final answer is 42."
  assert comments(anchor="", leaks="answer").sanitised(r"\boxed{42}", QUESTION).outcome is Outcome.EMPTY


def test_a_request_has_the_prompt_and_the_response_once():
  asked = comments(template="{prompt}|{response}|").request("P {response}", "R {prompt}")
  assert asked == "P {response}|R {prompt}|"
  chat = comments(template="{prompt}|{response}").request(
    [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "R"
  )
  assert chat == [{"role": "system", "content": "S"}, {"role": "user", "content": "Q|R"}]
