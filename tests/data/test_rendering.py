"""What a chat template reads beside the messages: the date, its arguments, the system message."""

import datetime
import inspect

import pytest
from transformers import PreTrainedTokenizerBase

from opd_jax.data import chat, rendering
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from tests.helpers.chat_tokenizers import messages, tokenizer

DAY = datetime.datetime(2024, 7, 26, 9, 5)
TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
LLAMA = (  # as Llama 3.2's begins
  "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
  '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
  '        {%- set date_string = "01 Jan 2001" %}\n    {%- endif %}\n{%- endif %}\nToday: {{ date_string }}\n'
)
QWEN = TURNS + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
ALTERNATES = (
  "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
  "{% endfor %}" + TURNS
)


def text(template, how: Rendering, prompt: chat.Prompt = "hi") -> str:
  return chat.as_text([chat.messages(prompt, how)], tokenizer(template), how)[0]


# The date.


def test_the_date_is_the_moments():
  assert text(LLAMA + TURNS, Rendering(moment=DAY)).startswith("Today: 26 Jul 2024\n[user] hi")
  ids = chat.render("hi", tokenizer(LLAMA + TURNS), Rendering(moment=DAY))
  assert ids[:18] == list(b"Today: 26 Jul 2024")


def test_without_a_moment_the_date_is_the_clocks():
  """So the name is what transformers gives, and a fixed one would not pass unnoticed if it ever were another."""
  today = {datetime.datetime.now().strftime("%d %b %Y") for _ in range(2)}
  assert text(LLAMA, Rendering()).removeprefix("Today: ").strip() in today


@pytest.mark.parametrize(
  "before", ["", "\n", "\n\n  ", "  {% if true %}x{% endif %}\n", "{# a #}\n", "{%- if true -%}\n y{% endif %}"]
)
def test_a_fixed_date_changes_nothing_else(before):
  template = before + TURNS + "{{ strftime_now('%Y') }}"
  now = datetime.datetime.now()
  assert text(template, Rendering(moment=now)) == text(template, Rendering())


def test_a_date_string_of_the_users_comes_before_the_moment():
  how = Rendering(args={"date_string": "4 May"}, moment=DAY)
  rendering.check(how, tokenizer(LLAMA))
  assert text(LLAMA, how).strip() == "Today: 4 May"


def test_formats_may_stand_anywhere_in_the_template_or_its_arguments():
  template = "{% set f = '%H:%M' %}{% macro when(g) %}{{ strftime_now(g) }}{% endmacro %}{{ when(f) }} {{ when(h) }}"
  assert text(template, Rendering(args={"h": "%j"}, moment=DAY)) == "09:05 208"


def test_a_format_that_is_put_together_is_refused():
  with pytest.raises(InputError, match="a format of dates that is not written out in it: %d-%m"):
    text("{% set s = '-' %}{{ strftime_now('%d' ~ s ~ '%m') }}", Rendering(moment=DAY))


@pytest.mark.parametrize("template", ["{{ [1, 2] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_at_random_is_refused(template):
  with pytest.raises(InputError, match="draws at random"):
    rendering.check(Rendering(), tokenizer(TURNS + template))


# Arguments.


def test_arguments_reach_the_template():
  assert text(QWEN, Rendering(args={"enable_thinking": False})).endswith("[assistant] <think></think>")
  assert text(QWEN, Rendering(args={"enable_thinking": True})).endswith("[assistant] ")
  assert text(QWEN, Rendering()).endswith("[assistant] ")


def test_a_teachers_arguments_are_added_to_the_students():
  how = Rendering(args={"a": 1, "b": 2}, teacher_args={"b": 3}, system="s", moment=DAY)
  assert how.for_teacher() == Rendering(args={"a": 1, "b": 3}, system="s", moment=DAY)


@pytest.mark.parametrize("given", [lambda args: Rendering(args=args), lambda args: Rendering(teacher_args=args)])
def test_an_argument_that_the_template_never_reads_is_told(given):
  rendering.check(given({"enable_thinking": False}), tokenizer(QWEN))
  with pytest.raises(InputError, match=r"template_args names 'enable_thinkin', .* it reads enable_thinking\.$"):
    rendering.check(given({"enable_thinkin": False}), tokenizer(QWEN))
  with pytest.raises(InputError, match="it reads no argument at all"):
    rendering.check(given({"enable_thinking": False}), tokenizer(TURNS))


def test_what_a_template_sets_by_default_is_read():
  rendering.check(Rendering(args={"x": 1}), tokenizer("{% set x = x | default(2) %}" + TURNS))
  rendering.check(
    Rendering(args={"x": 1}), tokenizer("{% macro f() %}{% generation %}{{ x }}{% endgeneration %}{% endmacro %}")
  )


def test_arguments_need_a_template():
  with pytest.raises(
    InputError, match=r"config\.data\.template_args is set, but the tokenizer of .* has no chat template"
  ):
    chat.render("hi", tokenizer(None), Rendering(args={"a": 1}))


@pytest.mark.parametrize(
  ("args", "says"),
  [
    ({"messages": 1}, "given already"),
    ({"add_generation_prompt": False}, "given already"),
    ({"strftime_now": "x"}, "given already"),
    ({"bos_token": "x"}, "given already"),
    ({"_x": 1}, "given already"),
    ({"a-b": 1}, "letters, digits and underscores"),
    ({"x": None}, r"key\.x is None; it can be True, False, a number or text"),
    ({"x": [1]}, r"key\.x is \[1\]"),
    ({"x": float("nan")}, r"key\.x is nan"),
  ],
)
def test_arguments_that_cannot_be_given(args, says):
  with pytest.raises(InputError, match=says):
    rendering.check_args("key", args)


def test_no_argument_takes_a_place_that_transformers_uses():
  taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"self"}
  assert taken <= rendering.RESERVED
  assert set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES) <= rendering.RESERVED


# Shapes.


def test_probes_render_as_the_run_does():
  tok = tokenizer(NEEDS_SYSTEM)
  assert chat.end_of_turn(tok, Rendering(system="s"))
  assert chat.end_of_turn(tok, Rendering(), messages(("system", "s")))
  assert chat.end_of_turn(tok, Rendering(system="s"), messages(("system", "of the data")))
  with pytest.raises(InputError, match=r"refuses the prompt \(TemplateError: no system\)"):
    chat.end_of_turn(tok, Rendering())
  assert chat.end_of_turn(tokenizer(ALTERNATES), Rendering())


@pytest.mark.parametrize(
  "template",
  [
    "{% for %}",
    "{{ messages[7].content }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('') }}",
    "{{ unknown() }}",
    "{{ ''.__class__.__mro__ }}{% include 'x' %}",
    {"tool_use": TURNS},
    ALTERNATES.replace("==", "!=", 1),
  ],
)
def test_what_a_template_refuses_is_one_sentence(template):
  for probe in (
    lambda tok: chat.render("hi", tok, Rendering(moment=DAY)),
    lambda tok: chat.end_of_turn(tok, Rendering(moment=DAY)),
    lambda tok: rendering.check_shown(messages(("user", "hi")), Rendering(), tok),
  ):
    with pytest.raises(InputError, match="refuses the prompt") as caught:
      probe(tokenizer(template))
    assert "\n" not in str(caught.value)


def test_of_several_templates_the_default_is_read():
  tok = tokenizer({"default": QWEN + "{{ strftime_now('%Y') }}", "tool_use": "{{ other }}"})
  how = Rendering(args={"enable_thinking": False}, moment=DAY)
  rendering.check(how, tok)
  assert chat.as_text([messages(("user", "hi"))], tok, how) == ["[user] hi\n[assistant] <think></think>2024"]
  with pytest.raises(InputError, match="never reads"):
    rendering.check(Rendering(args={"other": 1}), tok)


def test_a_template_that_leaves_the_users_words_out_is_refused():
  with pytest.raises(InputError, match="leaves out what the user writes"):
    rendering.check_shown(messages(("user", "hi")), Rendering(), tokenizer("{{ messages[0].text }}Say something."))


def test_other_words_that_are_left_out_are_told():
  chats = messages(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
  assert rendering.check_shown(chats, Rendering(), tokenizer(TURNS)) == []
  only_users = tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
  told = rendering.check_shown(chats, Rendering(), only_users)
  assert ["'system'" in told[0], "'assistant'" in told[1], len(told)] == [True, True, 2]


def test_a_prompt_that_is_no_chat_is_refused():
  for prompt in ([{"content": "hi"}], [{"role": "user"}], ["hi"]):
    with pytest.raises(InputError, match="a message that is not"):
      chat.render(prompt, tokenizer(TURNS), Rendering())  # pyright: ignore[reportArgumentType]


def test_prompts_that_are_refused_do_not_take_others_with_them():
  rows, why = chat.render_each(["a", messages(("assistant", "b")), "c"], tokenizer(ALTERNATES), Rendering())
  assert [row is None for row in rows] == [False, True, False] == ["take turns" in reason for reason in why]
