"""What the model reads, token by token."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError

WORDS = {w: i for i, w in enumerate(["<unk>", "<bos>", "<eos>", "<sys>", "<user>", "<bot>", "a", "b", "c"])}
UNK, BOS, EOS, SYS, USER, BOT, A, B, C = range(9)
TEMPLATE = (
  "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('late system') }}"
  "{% endif %}{{ {'system': '<sys>', 'user': '<user>', 'assistant': '<bot>'}[m['role']] + ' ' + m['content'] + ' ' }}"
  "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def tokenizer(form="$A", template=None, bos="<bos>", eos: str | None = "<eos>"):
  """`form` is what the tokenizer puts around plain text: $A, <bos> $A <eos>, ..."""
  model = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
  model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  model.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
  fast = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token=bos, eos_token=eos)
  fast.chat_template = template
  return fast


def messages(*pairs):
  return tuple({"role": role, "content": content} for role, content in pairs)


def render(prompt, tok, chat_template=True, system=""):
  return chat.render(prompt, tok, Rendering(chat_template, system))


def test_text_becomes_one_user_message():
  assert render("a b", tokenizer(template=TEMPLATE)) == [USER, A, B, BOT]


def test_the_template_alone_decides_about_special_tokens():
  assert render("a", tokenizer("<bos> $A <eos>", TEMPLATE)) == [USER, A, BOT]


def test_messages_keep_their_order_and_roles():
  prompt = messages(("user", "a"), ("assistant", "b"), ("user", "c"))
  assert render(prompt, tokenizer(template=TEMPLATE)) == [USER, A, BOT, B, USER, C, BOT]
  assert prompt == messages(("user", "a"), ("assistant", "b"), ("user", "c"))


def test_system_comes_first():
  tok = tokenizer(template=TEMPLATE)
  assert render("a", tok, system="c") == [SYS, C, USER, A, BOT]
  assert render(messages(("user", "a")), tok, system="c") == [SYS, C, USER, A, BOT]


@pytest.mark.parametrize(("template", "chat_template"), [(None, True), (None, False), (TEMPLATE, False)])
def test_plain_text_without_a_template(template, chat_template):
  assert render("a b", tokenizer(template=template), chat_template) == [A, B]


@pytest.mark.parametrize(
  ("form", "bos", "text", "ids"),
  [
    ("<bos> $A", "<bos>", "a b", [BOS, A, B]),
    ("$A <eos>", "<bos>", "a b", [A, B]),
    ("<bos> $A <eos>", "<bos>", "a b", [BOS, A, B]),
    # GPT-2's way: one token is both, and stands first.
    ("<eos> $A", "<eos>", "a b", [EOS, A, B]),
    # Written by the user, as in chat markup by hand, and not added by the tokenizer.
    ("$A", "<bos>", "a <eos>", [A, EOS]),
    ("<bos> $A", "<bos>", "a <eos>", [BOS, A, EOS]),
    ("$A <eos>", "<bos>", "a <eos>", [A, EOS]),
  ],
)
def test_plain_text_never_ends_with_an_added_eos(form, bos, text, ids):
  assert render(text, tokenizer(form, bos=bos)) == ids


def test_plain_text_without_any_eos():
  assert render("a b", tokenizer(eos=None)) == [A, B]


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("form", ["$A", "<bos> $A <eos>"])
def test_many_are_rendered_as_one_by_one(template, form):
  tok = tokenizer(form, template)
  prompts = ["a", "b c a", "<eos>", "a <eos>", "c"]
  rows = chat.render_all(prompts, tok, Rendering())
  assert rows == [render(p, tok) for p in prompts]
  assert all(type(i) is int for row in rows for i in row)
  assert chat.render_all([], tok, Rendering()) == []


def test_render_all_crosses_its_slices():
  prompts = ["a"] * 2048 + ["b"] * 3
  assert chat.render_all(prompts, tokenizer("$A <eos>"), Rendering()) == [[A]] * 2048 + [[B]] * 3


def test_render_within_keeps_the_end_and_counts_what_it_cuts():
  tok = tokenizer(template=TEMPLATE)
  short, long = messages(("user", "a")), messages(("user", "a"), ("assistant", "b"), ("user", "c"))
  rows = chat.render_all([short, long, long], tok, Rendering())
  assert [len(row) for row in rows] == [3, 7, 7]
  assert chat.render_within([short, long, long], tok, Rendering(), 7) == (rows, 0)
  assert chat.render_within([short, long, long], tok, Rendering(), 5) == ([rows[0], rows[1][-5:], rows[2][-5:]], 2)
  assert chat.render_within([], tok, Rendering(), 5) == ([], 0)


def test_messages_need_a_template():
  with pytest.raises(InputError, match=r"list of chat messages, but the tokenizer of .* has no chat template"):
    render(messages(("user", "a")), tokenizer())
  with pytest.raises(InputError, match=r"config\.data\.chat_template is False"):
    render(messages(("user", "a")), tokenizer(template=TEMPLATE), chat_template=False)


def test_system_needs_a_template():
  with pytest.raises(InputError, match=r"config\.data\.system is set, but the tokenizer of .* has no chat template"):
    render("a", tokenizer(), system="c")
  with pytest.raises(InputError, match=r"config\.data\.system is set, but config\.data\.chat_template is False"):
    render("a", tokenizer(template=TEMPLATE), chat_template=False, system="c")


def test_two_system_messages_are_refused():
  with pytest.raises(InputError, match="a system message of its own"):
    render(messages(("system", "b"), ("user", "a")), tokenizer(template=TEMPLATE), system="c")


def test_what_the_template_refuses_is_told():
  with pytest.raises(InputError, match=r"refuses the prompt .*late system"):
    render(messages(("user", "a"), ("system", "b")), tokenizer(template=TEMPLATE))
  with pytest.raises(InputError, match="refuses the prompt"):
    render("a", tokenizer(template="{% for %}"))


@pytest.mark.parametrize(
  ("after", "ends"),
  [("<eos> ", [EOS, USER, UNK, BOT]), ("", [USER, UNK, BOT]), ("a <eos> ", [A, EOS, USER, UNK, BOT])],
)
def test_what_a_template_puts_behind_a_reply(after, ends):
  turn = (
    "{% if m['role'] == 'user' %}<user> {{ m['content'] }} {% else %}<bot> {{ m['content'] }} " + after + "{% endif %}"
  )
  template = "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
  assert chat.end_of_turn(tokenizer(template=template), Rendering()) == ends
  other = tokenizer(template=template.replace("<bot> {% endif", "<bot> a {% endif"))
  assert chat.end_of_turn(other, Rendering()) is None


def test_a_template_that_fails_at_a_reply_is_refused_in_a_sentence():
  template = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}a{% endfor %}"
  )
  with pytest.raises(InputError, match=r"refuses the prompt \(.*no\); change the roles"):
    chat.end_of_turn(tokenizer(template=template), Rendering())


def test_a_text_that_begins_with_bos_has_one():
  """As a prompt that was rendered beforehand does."""
  made = tokenizer(form="<bos> $A", bos="<bos>")
  (bos,) = made("", add_special_tokens=True)["input_ids"]
  assert render("a", made, chat_template=False) == [bos, A]
  assert render("<bos> a", made, chat_template=False) == [bos, A]
