"""A teacher that is a function: what it is asked, and what is refused of its answers."""

import pytest

from opd_jax.errors import InputError
from opd_jax.rollout.endpoint import TeacherSampler
from opd_jax.rollout.function_sampler import FunctionSampler

ASKED = {"max_tokens": 8, "temperature": 0.5, "seed": 3}


def words(texts, add_special_tokens):
  assert not add_special_tokens
  return {"input_ids": [text.split() for text in texts]}


def test_a_function_is_asked_once_for_all_prompts_and_its_tokens_are_counted():
  calls = []

  def teacher(prompts, n, *, max_tokens, temperature, seed):
    calls.append((prompts, n, max_tokens, temperature, seed))
    return [[f"{prompt} {i}" for i in range(n)] for prompt in prompts]

  sampler = FunctionSampler("own:teacher", teacher, words)
  assert isinstance(sampler, TeacherSampler)
  assert sampler.sample(("a", "b c"), 2, **ASKED) == [["a 0", "a 1"], ["b c 0", "b c 1"]]
  assert calls == [(["a", "b c"], 2, 8, 0.5, 3)]
  assert sampler.tokens == 2 * 2 + 2 * 3
  sampler.sample(("a",), 1, **ASKED)
  assert sampler.tokens == 12


def test_a_prompt_may_go_without_an_answer():
  sampler = FunctionSampler("own:teacher", lambda prompts, n, **_: [[], ["x"] * n], words)
  assert sampler.sample(("a", "b"), 2, **ASKED) == [[], ["x", "x"]]
  assert sampler.tokens == 2
  assert FunctionSampler("own:teacher", lambda prompts, n, **_: [], words).sample((), 2, **ASKED) == []


@pytest.mark.parametrize(
  "answer",
  [None, "ab", [["x", "y"]], [["x", "y"], ["x"]], [["x", "y"], "xy"], [["x", "y"], ["x", 1]], {"a": 1, "b": 2}],
)
def test_another_answer_is_refused_with_what_is_needed(answer):
  sampler = FunctionSampler("own:teacher", lambda *_, **__: answer, words)
  with pytest.raises(
    InputError, match=r"The teacher 'own:teacher' does not answer as it has to; .* n texts for each prompt, or none"
  ):
    sampler.sample(("a", "b"), 2, **ASKED)


def test_a_function_that_fails_is_named_with_its_error():
  def teacher(prompts, n, **_):
    raise RuntimeError("the server is down\nand more")

  with pytest.raises(InputError, match=r"The teacher 'own:teacher' fails: RuntimeError: the server is down$"):
    FunctionSampler("own:teacher", teacher, words).sample(("a",), 1, **ASKED)
