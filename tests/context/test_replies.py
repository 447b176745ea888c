"""What becomes of a generated reply in the conversation that goes on with it."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd_jax.context.replies import ReplyForm, final_text, without
from opd_jax.data.rendering import Rendering
from opd_jax.tasks.problem import Response

TURN = "{% if m.role == 'assistant' %}A{{ TEXT }}{% else %}U{{ m.content }}{% endif %}"
KEEPS = "{% for m in messages %}" + TURN.replace("TEXT", "m.content") + "{% endfor %}A"
DROPS = "{% for m in messages %}" + TURN.replace("TEXT", "m.content.split('</think>')[-1]") + "{% endfor %}A"
DROPS_SEED = "{% for m in messages %}" + TURN.replace("TEXT", "m.content.split('</seed:think>')[-1]") + "{% endfor %}A"
REFUSES = (  # as gpt-oss's
  "{% for m in messages %}{% if '<|channel|>' in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
)
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + DROPS


def tokenizer(template):
  special = ("<pad>", "<eos>", "<turn>", "<think>", "</think>")
  raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, "a"])}, unk_token="<pad>"))
  raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  raw.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
  made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
  made.chat_template = template
  return made


@pytest.mark.parametrize(
  ("template", "system", "drops"),
  [
    (KEEPS, "", False),
    (DROPS, "", True),
    (NEEDS_SYSTEM, "Be brief.", True),
    (NEEDS_SYSTEM, "", False),
    (None, "", False),
  ],
)
def test_it_is_found_out_what_the_template_does_with_thoughts(template, system, drops):
  form = ReplyForm.of(tokenizer(template), Rendering(system=system))
  assert ("<think>" in form.dropped) is drops
  assert not form.refused


@pytest.mark.parametrize(
  ("response", "kept", "dropped", "cut"),
  [
    (Response("a"), "a", "a", False),
    (Response("<think>b</think>a"), "<think>b</think>a", "<think>b</think>a", False),
    (Response("a<think>b", ended=False), "a<think>b", "a", True),
    (Response("b</think>a", prompt="A<think>\n"), "<think>\nb</think>a", "<think>\nb</think>a", False),
    (Response("b", ended=False, prompt="A<think>\n"), "<think>\nb", "", True),
    (Response("a<turn>b<eos>"), "ab", "ab", False),
  ],
)
def test_a_thought_that_was_cut_goes_the_way_of_the_others(response, kept, dropped, cut):
  assert ReplyForm.of(tokenizer(KEEPS), Rendering()).turn(response) == (kept, cut)
  assert ReplyForm.of(tokenizer(DROPS), Rendering()).turn(response) == (dropped, cut)


def test_a_template_may_treat_each_kind_of_mark_in_its_own_way():
  form = ReplyForm.of(tokenizer(DROPS_SEED), Rendering())
  assert form.dropped == {"<seed:think>"}
  assert form.turn(Response("a<seed:think>b", ended=False)) == ("a", True)
  assert form.turn(Response("a<think>b", ended=False)) == ("a<think>b", True)


def test_marks_that_the_template_refuses_stand_in_no_turn():
  """The conversation goes on with what is said behind the thought; an error of the template would end the run."""
  analysis, final = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
  form = ReplyForm.of(tokenizer(REFUSES), Rendering())
  assert form.refused == {analysis}
  assert form.turn(Response(f"{analysis}b{final}a")) == ("a", False)
  assert form.turn(Response(f"{analysis}b", ended=False)) == ("", True)
  assert form.turn(Response("<think>b</think>a")) == ("<think>b</think>a", False)


@pytest.mark.parametrize("text", ["a<turn>b", "a<tu<turn>rn>b", "a<e<turn>os>b", "<eos>ab<eos><turn>"])
def test_removing_control_tokens_makes_no_other(text):
  assert without(("<turn>", "<eos>"), text) == "ab"


def test_a_rephrased_turn_is_what_a_whole_response_says():
  """Behind its thought, and nothing where the limit cut the sentence."""
  assert final_text(Response("<think>5</think>He has 4.<turn>"), ("<turn>",)) == "He has 4."
  assert final_text(Response("b</think>He has 4.", prompt="A<think>\n"), ()) == "He has 4."
  assert final_text(Response("He has 4", ended=False), ()) == ""
  assert final_text(Response("<think>He has 4."), ()) == ""
