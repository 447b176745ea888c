"""Hard questions asked anew: which of them and how, and what stands in their prompts."""

import dataclasses

import numpy as np
import pytest

from opd_jax.context import candidates
from opd_jax.context.candidates import Candidates, beginning, chosen, distinct, hardest, possible
from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.tasks import chain

WRITTEN = Candidates(
  bcq="{prompt}{candidates}=",
  ncq="{prompt}{answers}#{candidates}=",
  hint="{prompt}>{text}=",
  block=":{text}",
  request="{prompt}{response}x",
  max_tokens=6,
  max_prompt=20,
  blocks=3,
  same_length=True,
  shuffle=True,
  wrong_pair=False,
)


def rendered(tokenizer):
  return lambda prompt: chat.render(prompt, tokenizer, Rendering())


def rng(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  from opd_jax.data import tokenizer as tokenizers

  path = tmp_path_factory.mktemp("symbols")
  chain.TOKENIZER.save(path)
  return tokenizers.load(path)


def test_the_hardest_come_first_and_only_those_below_tau():
  rates = [0.25, 0.5, 0.0, 1.0, 0.3, 0.125]
  assert hardest(rates, 0.5, 10, rng(0)) == [2, 5, 0, 4]
  assert hardest(rates, 0.5, 3, rng(0)) == [2, 5, 0]
  assert hardest([0.5, 1.0], 0.5, 3, rng(0)) == []
  assert hardest([0.0], 0.5, 0, rng(0)) == []


def test_questions_of_one_rate_have_the_same_chance():
  kept = [hardest([0.0, 0.25, 0.0, 0.0], 0.5, 2, rng(seed)) for seed in range(300)]
  counts = np.bincount([i for each in kept for i in each], minlength=4)
  assert counts[1] == 0
  assert (np.abs(counts[[0, 2, 3]] - 200) < 40).all()
  assert hardest([0.0] * 5, 0.5, 5, rng(1)) == hardest([0.0] * 5, 0.5, 5, rng(1))


def test_no_bcq_without_a_right_candidate_and_no_prompt_without_a_wrong_one():
  kinds = ("bcq", "ncq")
  assert possible(kinds, 1, 1) == ["bcq", "ncq"]
  assert possible(kinds, 0, 4) == ["ncq"]
  assert possible(kinds, 4, 0) == []
  assert possible(("ncq",), 1, 1) == ["ncq"]
  assert possible(kinds, 1, 1, wrong_pair=True) == ["ncq"]
  assert possible(kinds, 1, 2, wrong_pair=True) == ["bcq", "ncq"]
  assert possible(("hint", "prefix"), 1, 0) == ["hint", "prefix"]
  assert possible(("hint", "prefix"), 0, 3) == []


def test_a_last_place_goes_to_the_bcq():
  both, only = ["bcq", "ncq"], ["ncq"]
  assert chosen([both, both], 4) == [(0, "bcq"), (0, "ncq"), (1, "bcq"), (1, "ncq")]
  assert chosen([both, both], 3) == [(0, "bcq"), (0, "ncq"), (1, "bcq")]
  assert chosen([only, both], 2) == [(0, "ncq"), (1, "bcq")]
  assert chosen([[], both], 1) == [(1, "bcq")]
  assert chosen([both], 9) == [(0, "bcq"), (0, "ncq")], "fewer where there are fewer"


def test_wrong_answers_are_listed_once():
  assert distinct(["7", "8", "7", "9", "8"], 9) == [0, 1, 3]
  assert distinct(["7", "8", "7", "9"], 2) == [0, 1]


def text_of(ids, tokenizer) -> str:
  return tokenizer.decode(ids)


def test_both_candidates_have_one_form_and_one_length(tokenizer):
  """Cut ones keep their ends, where the answer stands."""
  short, long = "1+2=3", "4+5=9,9+1=0"
  for texts in ((short, long), (long, short)):
    asked = text_of(WRITTEN.ask("bcq", "12", texts, tokenizer, rendered(tokenizer)), tokenizer)
    blocks = asked.removeprefix("12:").removesuffix("=").split(":")
    assert [len(block) for block in blocks] == [5, 5]
    assert all(text.endswith(block) for text, block in zip(texts, blocks, strict=True))
  own = dataclasses.replace(WRITTEN, same_length=False)
  assert text_of(own.ask("bcq", "12", (short, long), tokenizer, rendered(tokenizer)), tokenizer) == "12:1+2=3:,9+1=0="


def test_prompts_stay_below_their_cap_by_shortening_all_candidates_alike(tokenizer):
  texts = ("1+2=3", "4+5=9")
  for most in range(5, 16):
    tight = dataclasses.replace(WRITTEN, max_prompt=most)
    ids = tight.ask("bcq", "12", texts, tokenizer, rendered(tokenizer))
    if most < 7:
      assert ids is None
      continue
    assert ids is not None
    assert len(ids) <= most
    first, second = text_of(ids, tokenizer).removeprefix("12:").removesuffix("=").split(":")
    assert len(first) == len(second) >= min(5, (most - 5) // 2)
  assert dataclasses.replace(WRITTEN, max_prompt=4).with_hint("12", "3", tokenizer, rendered(tokenizer)) is None
  assert dataclasses.replace(WRITTEN, max_prompt=3).with_prefix("12", "34", tokenizer, rendered(tokenizer)) is None


def test_an_ncq_lists_what_is_wrong_and_how_it_came_about(tokenizer):
  ids = WRITTEN.ask("ncq", "12", ("1+2=4", "1+2=5"), tokenizer, rendered(tokenizer), answers=("4", "5"))
  assert text_of(ids, tokenizer).startswith("124,")  # ", " where the tokenizer has a space
  assert text_of(ids, tokenizer).endswith("#:1+2=4:1+2=5=")


def test_hints_and_prefixes_are_beginnings_of_a_solution(tokenizer):
  solution = "1+2=3,3+4=7"
  assert beginning(solution, 0.4, tokenizer) == "1+2="
  assert beginning(solution, 0.0, tokenizer) == ""
  assert text_of(WRITTEN.with_hint("12", "1+2=", tokenizer, rendered(tokenizer)), tokenizer) == "12>1+2=="
  assert text_of(WRITTEN.with_prefix("12=", "1+2=", tokenizer, rendered(tokenizer)), tokenizer) == "12=1+2="


def test_the_order_of_candidates_is_balanced_over_keys_unless_a_control_fixes_it():
  swaps = [WRITTEN.swaps(np.random.default_rng([0, i])) for i in range(400)]
  assert 160 < sum(swaps) < 240
  fixed = dataclasses.replace(WRITTEN, shuffle=False)
  assert not any(fixed.swaps(np.random.default_rng([0, i])) for i in range(50))


def test_a_chat_keeps_its_other_messages():
  chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "12"}]
  asked = WRITTEN.compression(chat, "1+2=3")
  assert asked == [chat[0], {"role": "user", "content": "121+2=3x"}]
  assert chat[1]["content"] == "12"


def test_every_kind_is_known():
  assert {kind for kind in candidates.KINDS if possible([kind], 2, 2)} == set(candidates.KINDS)
