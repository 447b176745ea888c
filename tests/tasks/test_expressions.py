"""What math-verify is asked, and that the order of the two does not matter."""

import pytest

from opd_jax.tasks.expressions import is_comparable, is_constant, same_answer

SAME = [
  ("1/2", r"\frac{2}{4}"),
  ("0.5", r"\frac{\sqrt{4}}{4}"),
  ("2", r"\sqrt{4}"),
  ("2", r"2\sqrt{2}/\sqrt{2}"),
  ("3", r"\sqrt[3]{27}"),
  ("4", "2^2"),
  ("x^2-1", "(x+1)(x-1)"),
  ("B", "(B)"),
  ("Mary", "mary"),
  ("[0,1)", "[0, 1)"),
  ("x=3 or x=4", "x = 3 or x = 4"),
]
OTHER = [
  ("2", r"\sqrt{5}"),
  ("1/3", "0.333"),
  ("x", "x+1"),
  ("(1, 2)", "(2, 1)"),
  ("(1, 2)", "[1, 2]"),
  ("[0, 1)", "(0, 1]"),
  ("A", "B"),
  ("Mary", "army"),
  ("3", "1 2"),
  ("24", "4!"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_answers(a, b):
  assert same_answer(a, b)
  assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_other_answers(a, b):
  assert not same_answer(a, b)
  assert not same_answer(b, a)


@pytest.mark.parametrize(
  ("text", "constant"),
  [
    (r"\frac{2\sqrt{2}}{\sqrt 2}", True),
    (r"x = \sqrt{4}", True),
    (r"\sqrt{x}", False),
    (r"\sqrt{4}, 3", False),
    (r"1 = \sqrt{4}", False),
    ("1 2", False),
    (r"1 \sqrt{2}", True),
    ("1.2.3", False),
    (r"\sqrt{4} \text{ cm}", False),
    ("+".join(rf"\sqrt{{{p}}}" for p in range(2, 8)), False),  # slow to compare
  ],
)
def test_a_constant_is_made_of_numbers_alone(text, constant):
  assert is_constant(text) == constant


@pytest.mark.parametrize(
  "text", ["She sold 18", "9!", "1 2", "x" * 201, "18 -", "(1", "1)", r"0.\overline{3}", "(" * 7 + "2" + ")" * 7]
)
def test_what_math_verify_is_not_asked_about(text):
  assert not is_comparable(text)
