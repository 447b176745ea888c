"""A right answer in any usual dress counts; a guess never does."""

import json
import pathlib
import re
import threading
import time
from fractions import Fraction

import pytest

from opd_jax.tasks.gsm8k import extract_answer, gold, number, unmatched, verify

GSM8K = pathlib.Path(__file__).resolve().parents[3] / "shared/data/gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"the GSM8K files are not at {GSM8K}")

RIGHT = [
  # Boxed: the last, with braces inside.
  (r"\boxed{18}", "18"),
  (r"So \boxed{5}. No: \boxed{18}.", "18"),
  (r"The answer is $\boxed{18}$. There are 3 left.", "18"),
  (r"\boxed{18\text{ eggs}}", "18"),
  (r"\boxed{\text{18}}", "18"),
  (r"\boxed{\$1,080.00}", "1,080"),
  (r"\boxed{1{,}080}", "1080"),
  (r"\boxed{10\,000}", "10000"),
  (r"\boxed{18\%}", "18"),
  (r"\boxed{18 \text{ cm}^2}", "18"),
  (r"\boxed{18^\circ}", "18"),
  (r"\boxed{18 miles/hour}", "18"),
  (r"\boxed{x = 36/2 = 18}", "18"),
  (r"\boxed 18 ", "18"),
  # GSM8K's own.
  ("9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "#### 18"),
  ("#### $18.00", "18"),
  ("#### 18 dollars", "18"),
  ("#### 18<|im_end|>", "18"),
  ("#### Step 1: add 3\n#### 18", "18"),
  ("#### Final Answer\nThe total is 18.", "18"),
  # Announced.
  ("The answer is 18.", "18"),
  ("The answer is $18.00, so he needs 3 more.", "18"),
  ("The answer is 16 - 3 + 5 = 18 eggs.", "18"),
  ("The answer is x = 18.", "18"),
  ("The answer is 18 (since 9 * 2 = 18).", "18"),
  ("The answer is 18 apples for 3 kids.", "18"),
  ("The answer is 5 hours and she leaves.", "5"),
  ("the answer is −5", "-5"),
  ("The answer is .5", "0.5"),
  (r"Final answer: \(18\)", "18"),
  ("**Answer:** $18 per day at the market with 4 stalls.", "18"),
  ("**Final Answer**\n\n18 dollars", "18"),
  ("### Answer\n18", "18"),
  ('{"answer": 18}', "18"),
  ("<answer>18</answer>", "18"),
  ("<think>Is it 4? \\boxed{4}</think> It is 18.", "18"),
  # Or else the last number.
  ("She makes $18 every day", "18"),
  ("16 - 3 - 4 = 9, and 9*2=18", "18"),
  (r"$x = \frac{36}{2} = 18$.", "18"),
  ("\\[\n18\n\\]", "18"),
  ("**18**", "18"),
  ("It costs 1.50$", "1.5"),
  ("1. The total is 18.\n2. Done", "18"),
  # Other numbers.
  (r"\boxed{\frac{3}{4}}", "0.75"),
  (r"\boxed{\dfrac34}", "3/4"),
  (r"\boxed{-\frac{1}{2}}", "-0.5"),
  (r"\boxed{1\frac{1}{2}}", "1.5"),
  ("It takes 1 1/2 hours", "1.5"),
  (r"\boxed{1.5e3}", "1500"),
  (r"\boxed{1.5 \times 10^{3}}", "1500"),
  ("The profit is $5 million.", "5000000"),
  # Not numbers.
  (r"\boxed{\text{Mary}}", "Mary"),
  ("The answer is **Mary**.", "mary"),
  (r"\boxed{x^2+2x+1}", "x^2 + 2x + 1"),
  (r"\boxed{(x+1)^2}", "x^2+2x+1"),
  (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
  (r"\boxed{(1, 2)}", "(1,2)"),
  (r"\boxed{x = 3 + \sqrt{8}}", r"2\sqrt{2}+3"),
  ("x^2 + 1", "x^2+1"),
  ("**Mary**", "Mary"),
  ("(The answer is Mary)", "Mary"),
  ('The answer is "Mary".', "Mary"),
  # Exact expressions, whichever side they are on.
  (r"\boxed{\frac{2}{4}}", "1/2"),
  (r"\boxed{\sqrt{4}}", "2"),
  ("#### \\sqrt{4}", "2"),
  (r"The answer is $2\sqrt{2}/\sqrt{2}$.", "2"),
  (r"The answer is \(x = \sqrt{4}\).", "2"),
  (r"\boxed{18 - 3}", "15"),
  (r"\boxed{4}", r"\sqrt{16}"),
  ("The answer is 4 apples.", r"\sqrt{16}"),
  ("It is 4.", r"\sqrt{16}"),
  # Brackets that belong to the answer, and one pair around all of it.
  ("The answer is (B).", "B"),
  ("The answer is **(B)**.", "(B)"),
  ("#### (B)", "B"),
  ("The answer is (1, 2).", "(1, 2)"),
  ("The answer is $(1, 2)$.", "(1,2)"),
  ("The answer is (-1, 3).", "(-1,3)"),
  ("The answer is [0, 1).", "[0, 1)"),
  ("Answer: [1, 2]", "[1, 2]"),
  ("The answer is {1, 2}.", "{1, 2}"),
  (r"The answer is $(x+1)(x-1)$.", "x^2-1"),
  ("#### (x+1)(x-1)", "x^2-1"),
  ("The answer is (x+1)/2.", "(x+1)/2"),
  (r"\boxed{(18)}", "18"),
  (r"\boxed{{18}}", "18"),
  # Other scripts.
  ("The answer is １８。", "18"),
  ("The answer is 18。She is glad.", "18"),
  ("答案是18。", "18"),
  ("答案：１８个苹果。", "18"),
  ("答案是18，因为她卖了。", "18"),
  ("The answer is १८।", "18"),
  ("The answer is ১৮.", "18"),
  ("The answer is ١٨.", "18"),
  ("#### 18", "１８"),
  # The reference in the words of a response.
  ("18", "The answer is 18."),
  ("#### 18", "... #### 18\nNote: in dollars"),
  (r"\boxed{18}", "Answer: 18"),
  ("It is 18.", "**Final Answer**\n\n18"),
  ("18", "18<|endoftext|>"),
  ("18", "#### 18 </s>"),
  ("18", "18<|im_end|>\n<|endoftext|>"),
  ("18", "18<｜end▁of▁sentence｜>"),
  ("18", r"#### \boxed{18}"),
  ("18", "<think>Is it 4?</think> The answer is 18."),
  (r"\boxed{\frac{\sqrt{3}}{2}}", r"So 5. The answer is $\frac{\sqrt{3}}{2}$.<|im_end|>"),
]

WRONG = [
  ("", "18"),
  ("I do not know.", "18"),
  (r"\boxed{}", "18"),
  (r"\boxed{19}", "18"),
  ("18", ""),
  (r"\boxed{}", ""),
  # Cut inside the answer, or before it.
  (r"\boxed{18", "18"),
  (r"\boxed{18} or \boxed{2", "18"),
  (r"\boxed{18-}", "18"),
  ("<think> It is 18.", "18"),
  ("<think> It is \\boxed{18}.", "18"),
  # Two answers.
  (r"\boxed{18} \boxed{20}", "18"),
  (r"\boxed{18 or 20}", "18"),
  (r"\boxed{18, 20}", "18"),
  (r"\boxed{a = 18, b = 20}", "20"),
  ("The answer is 18 or 20.", "18"),
  ("The answer is 18 or 20.", "20"),
  ("The answer is 18 and 20.", "20"),
  ("It is in ($18-$20)", "20"),
  ("The answer is 20 (since x=18).", "18"),
  # A part of something longer.
  ("The answer is 18 - 3", "18"),
  ("5 + 18", "18"),
  ("5+18", "18"),
  ("18 / 3", "3"),
  ("at 5:18", "18"),
  ("x^18", "18"),
  ("the 18th", "18"),
  ("1/18", "18"),
  ("2 1/18", "18"),
  ("1 000 018", "18"),
  ("18 million", "18"),
  ("18 and a half", "18"),
  (r"\boxed{18 and a half}", "18"),
  (r"\boxed{18 million}", "18"),
  (r"\boxed{18x}", "18"),
  (r"\boxed{18\pi}", "18"),
  (r"\boxed{18 squared}", "18"),
  (r"\boxed{18^2}", "18"),
  ("It is 18².", "18"),
  (r"\boxed{18!}", "18"),
  (r"\boxed{18,20}", "18"),
  (r"\boxed{x \neq 18}", "18"),
  (r"\boxed{x \geq 18}", "18"),
  ("#### 18 20", "18"),
  ("v18", "18"),
  ("1. The total is unknown.\n2. So", "2"),
  # Near, and not it.
  ("18", "-18"),
  ("-18", "18"),
  ("18.5", "18"),
  (r"\boxed{0.333}", "1/3"),
  (r"\boxed{18e1}", "18"),
  # Not numbers. Mary and army are the same product of letters.
  ("18", "x"),
  (r"\boxed{army}", "Mary"),
  (r"\boxed{x+1}", "x+2"),
  ("Mary\nJohn", "Mary"),
  ("Mary and John", "Mary"),
  # Near an expression, and not it; what math-verify reads as something else.
  (r"\boxed{\sqrt{5}}", "2"),
  (r"\boxed{4}", r"\sqrt{15}"),
  (r"\boxed{1 2}", "3"),
  (r"\boxed{4 -}", r"\sqrt{16}"),
  (r"\boxed{0}", r"0.\overline{3}"),
  (r"\boxed{0.\overline{9}}", "0"),
  (r"\boxed{4!}", "24"),
  (r"\boxed{\pm 2}", "2"),
  (r"\boxed{2 \pm 0}", "2"),
  (r"\boxed{2x/x}", "2"),
  (r"\boxed{\sqrt{4}, 3}", "2"),
  (r"\boxed{\sqrt{4} or 3}", "2"),
  (r"\boxed{x > \sqrt{4}}", "2"),
  (r"\boxed{a = \sqrt{4}, b = 3}", "2"),
  (r"The answer is \sqrt{16} or 3.", "4"),
  (r"The answer is x^\frac{1}{2}.", "x/2"),
  ("The answer is 18 - 3", "3"),
  # Brackets.
  ("The answer is (1, 2).", "1"),
  ("The answer is (1, 2).", "2"),
  ("The answer is (1, 2).", "(2, 1)"),
  ("The answer is [0, 1).", "0"),
  ("The answer is (0, 1].", "[0, 1)"),
  ("The answer is [1, 2].", "(1, 2)"),
  ("The answer is (A) or (B).", "A"),
  ("The answer is (A).", "B"),
  ("The answer is (x+1)(x+1).", "x^2-1"),
  # Two answers, or none of it.
  ("The answer is 18, 20.", "18"),
  ("The answer is not 18.", "18"),
  # Other scripts.
  ("答案是18又二分之一", "18"),
  ("答案是18万", "18"),
  ("答案是18或20", "18"),
  ("答案是18、20。", "18"),
  ("The answer is １８，２０。", "18"),
  ("１，８", "18"),
  # References.
  ("19", "The answer is 18."),
  ("18", "The answer is 18 or 20."),
  ("18", "She sold 18 eggs."),
  ("1", "The answer is (1, 2)."),
  ("18", "<think> It is 18."),
  ("It is Mary", "Mary"),
]


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_right(response, answer):
  assert verify(response, answer)


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_wrong(response, answer):
  assert not verify(response, answer)


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("1,080", 1080),
    ("$18.00", 18),
    ("-3", -3),
    ("-$3", -3),
    (".5", Fraction(1, 2)),
    ("3/4", Fraction(3, 4)),
    ("1 1/2", Fraction(3, 2)),
    ("1.5e-3", Fraction(3, 2000)),
    ("25%", 25),
    ("3k", 3000),
    ("18 apples", 18),
    ("18apples", 18),
    ("5 km", 5),
    ("5km", 5),
    ("5 cm²", 5),
    ("5²", None),
    ("(5)", 5),
    ("(5, 6)", None),
    ("５．５", Fraction(11, 2)),
    ("𝟏𝟖", 18),
    ("5个苹果", 5),
    ("5万", None),
    ("5又三分之一", None),
    ("1,08", None),
    ("1,00,018", None),
    ("3/0", None),
    ("2ab", None),
    ("5 x", None),
    ("", None),
    ("apples", None),
  ],
)
def test_number(text, value):
  assert number(text) == value


@pytest.mark.parametrize(
  ("answer", "final"),
  [
    ("a #### 1\n#### 18", "18"),
    (" 18 ", "18"),
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    ("", ""),
    ("The answer is 18.", "18"),
    ("#### 18\nThat is all.", "18"),
    ("Answer: $x+1$", "x+1"),
    ("18</s>", "18"),
    ("18.", "18"),
    ("１８", "18"),
    ("#### 3. Add up\nThe answer is 18.", "18"),
    ("#### Final Answer\n18", "18"),
    (r"\boxed{3}, and then #### 18", "18"),
    ("The answer is (1, 2).", "(1, 2)"),
    ("(x+1)(x-1)", "(x+1)(x-1)"),
    ("3:45", "3:45"),
    ("It is Mary", "It is Mary"),
  ],
)
def test_gold(answer, final):
  assert gold(answer) == final
  assert gold(final) == final


@pytest.mark.parametrize("reference", [pair[1] for pair in RIGHT])
def test_a_reference_verifies_itself_and_what_states_its_answer(reference):
  assert unmatched([reference]) == ([], 1)
  for text in (reference, rf"\boxed{{{gold(reference)}}}", f"The answer is {gold(reference)}.", gold(reference)):
    assert verify(text, reference)


@pytest.mark.parametrize(
  "reference",
  [
    "She sold 18 eggs.",  # no mark says that it is 18
    "5 hours and 30 minutes",
    "Answer 18",
    "First she sold eggs. Then she went home.",
    "A word " * 40,
    r"\boxed{18",
    r"\boxed{5} #### 18",  # a response's box counts before its ####
    "<think> It is 18.",
    "####",
  ],
)
def test_a_reference_that_only_its_own_words_match_is_found(reference):
  assert unmatched(["18", reference, "Mary", "x+1"]) == ([1], 4)


def test_looking_for_such_references_ends_in_time():
  begun = time.perf_counter()
  found, examined = unmatched([rf"\frac{{{i}\sqrt{{5}}}}{{3}} + x" for i in range(100_000)], seconds=0.2)
  assert found == []
  assert 0 < examined < 100_000
  assert time.perf_counter() - begun < 2


@pytest.mark.few(3)
@pytest.mark.parametrize(
  "response",
  [
    r"\boxed{" + "9" * 100_000 + "}",
    "9" * 100_000,
    "1," * 50_000,
    "1 " * 50_000,
    "{" * 100_000,
    r"\boxed{" * 20_000,
    "#" * 100_000,
    "answer is " * 20_000,
    "<<" * 50_000,
    r"\frac{" * 20_000,
    " \n" * 50_000,
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{((9^{999})^{999})^{999}}",
    r"\boxed{99999999999999!}",
    r"\boxed{(x+1)^{999}}",
    r"\boxed{(x+y+z+a+b+c+d)^9}",
    r"\boxed{\sum_{k=1}^{99999} k^k}",
    "answer is " + ")" * 100_000,
    "answer is (" + "1," * 50_000,
    "answer is not" + " " * 100_000 + "18",
    "#### 1" + " " * 100_000 + "<|",
    "####" + " " * 100_000,
    "答案是" + "１" * 100_000,
    "18" + "<|a|>" * 20_000 + "1",
    r"\boxed{" + r"\frac{1}{1+" * 12 + "1" + "}" * 13,
    r"\boxed{" + "1/(1+" * 30 + "1" + ")" * 30 + "}",
    r"\boxed{" + "+".join(rf"\frac{{\sqrt{{{p}}}}}{{1+\sqrt{{{p + 2}}}}}" for p in (3, 5, 11, 17, 29, 41)) + "}",
    r"\boxed{" + "".join(rf"\sin({p})" for p in range(1, 18)) + "}",
    r"\boxed{(2^{1/97}+3^{1/89}+5^{1/83})^9}",
  ],
)
@pytest.mark.parametrize("answer", ["18", "x^2+1", r"\sqrt{17}"])
def test_no_response_stalls_the_run(response, answer):
  start = time.perf_counter()
  assert not verify(response, answer)
  assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
  "reference",
  ["18" + "<|a|>" * 20_000, "####" + " " * 100_000, "answer is " * 20_000, " \n" * 50_000, r"\boxed{" * 20_000],
)
def test_no_reference_stalls_the_run(reference):
  start = time.perf_counter()
  assert len(gold(reference)) <= len(reference)
  assert not verify("19", reference)
  assert time.perf_counter() - start < 5


def test_verifies_off_the_main_thread(caplog):
  """math-verify's timeouts are signals, which a thread cannot set."""
  out = {}

  def work(i):
    out[i] = [verify(r"\boxed{(x+1)^2}", "x^2+2x+1"), verify(r"\boxed{(x+2)^2}", "x^2+2x+1"), verify("18", "18")]

  threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert list(out.values()) == [[True, False, True]] * 3
  assert not caplog.records


@needs_gsm8k
def test_every_gold_answer_verifies_itself_and_no_other():
  with (GSM8K / "test.jsonl").open(newline="\n") as file:
    answers = [json.loads(line)["answer"] for line in file]
  assert len(answers) == 1319
  for answer in answers:
    value = number(gold(answer))
    assert value is not None
    reasoning = answer.rsplit("####", 1)[0]
    for right in (
      answer,
      rf"{reasoning}\boxed{{{value}}}",
      f"{reasoning}The answer is ${int(value):,}.",
      f"So {value}.00",
    ):
      assert verify(right, answer), (right, answer)
    wrong = value + 1
    for other in (f"{reasoning}#### {wrong}", rf"{reasoning}\boxed{{{wrong}}}", f"The answer is {int(wrong):,}."):
      assert not verify(other, answer), (other, answer)
    assert not verify(answer, str(wrong))


@needs_gsm8k
def test_reasoning_alone_mostly_ends_with_its_answer():
  """The fallback to the last number, on real text."""
  with (GSM8K / "test.jsonl").open(newline="\n") as file:
    answers = [json.loads(line)["answer"] for line in file]
  plain = [re.sub(r"<<.*?>>", "", answer.rsplit("####", 1)[0]) for answer in answers]
  right = sum(verify(text, answer) for text, answer in zip(plain, answers, strict=True))
  assert right / len(answers) > 0.85


# Responses that a limit cut.


@pytest.mark.parametrize(
  "text",
  [
    "The answer is 18 dollars.\nThat is all.",
    "9 * 2 = 18\n#### 18\n",
    r"So \boxed{18} dollars.",
    "<answer>18</answer> and",
    "The final answer is $18.00. Let me see",
    "Answer: 18\nBecause of 9",
  ],
)
def test_of_a_cut_response_counts_what_it_stated_to_the_end(text):
  assert verify(text, "18", ended=False)
  stated = [n for n in range(len(text) + 1) if verify(text[:n], "18", ended=False)]
  assert stated, "the whole"
  assert text[: stated[0]].rstrip().endswith((".", "18", "}", ">")), "from the end of the statement on"
  for n in range(len(text) + 1):
    for part in ("1", "8", "9", "2"):
      assert not verify(text[:n], part, ended=False), "no cut of it is another number"
      claimed = extract_answer(text[:n], ended=False)
      assert claimed is None or number(claimed) == 18


@pytest.mark.parametrize(
  "text",
  [
    "The answer is 18",
    "The answer is 18.",  # 18.5?
    "#### 18",
    r"\boxed{18",
    "There are 9 * 2 = 18 eggs.\n",  # a step, as far as anybody can tell
    "The answer is 18. No, the answer is",
    "The answer is 18. Wait, \\box",
    "#### 18\n#",
    "",
  ],
)
def test_of_a_cut_response_nothing_counts_that_may_go_on(text):
  assert not verify(text, "18", ended=False)
  assert extract_answer(text, ended=False) is None


def test_no_cut_inside_a_final_number_is_an_answer():
  """Every prefix of a number at the end of a solution, in the form of GSM8K, as its answer."""
  for answer in ("18", "1,080", "2.50", "70000", "-3"):
    for n in range(1, len(answer) + 1):
      cut = f"She earns 9 * 2 = <<9*2=18>>18 dollars.\n#### {answer[:n]}"
      assert not verify(cut, answer[:n], ended=False)
