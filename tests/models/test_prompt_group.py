"""Attention within prompts and their responses as one sequence is the dense form with the same mask, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import blockwise, decoder, kernels
from opd_jax.models.attention import PromptGroup, attend, attend_causal, attend_group
from tests.models.test_kernels import error, graded, lowered

N, K, h = 4, 2, 8
FORMS = {
  "products": attend_group,
  "products, blocks of 3": functools.partial(attend_group, block=3),
  "blocks of 4": functools.partial(blockwise.attend, block=4),
  "one block": functools.partial(blockwise.attend, block=64),
  "cudnn": functools.partial(kernels.cudnn, implementation="xla"),
  "splash": functools.partial(kernels.splash, interpret=True),
}
GROUPS = [PromptGroup(7, 4, 5), PromptGroup(9, 6, 2), PromptGroup(6, 2, 11), PromptGroup(1, 3, 1)]


def arrays(group: PromptGroup, p: int = 3, dtype=jnp.float32):
  """q, k, v, a mask of prompts padded on the left and of responses that end anywhere, and a cotangent."""
  rng = np.random.default_rng(group.length)
  q, k, v, cotangent = (
    jnp.asarray(2 * rng.standard_normal((p, group.length, n, h)), d)
    for n, d in ((N, dtype), (K, dtype), (K, dtype), (N, jnp.float32))
  )
  padding, lengths = rng.integers(0, group.prompt, p), rng.integers(0, group.response + 1, (p, group.n))
  prompts = np.arange(group.prompt) >= padding[:, None]
  responses = np.arange(group.response) < lengths[..., None]
  mask = np.concatenate([prompts, responses.reshape(p, -1)], axis=1)
  return q, k, v, jnp.asarray(mask), cotangent


def dense(group: PromptGroup):
  at = np.arange(group.length)
  sees = jnp.asarray(group.sees(at[:, None], at[None]))
  return lambda q, k, v, mask: attend(q, k, v, sees & mask[:, None, :])


@pytest.mark.few(3)
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_dense_one(form, group):
  inputs = arrays(group)
  found = graded(functools.partial(FORMS[form], group=group))(*inputs)
  assert error(found, graded(dense(group))(*inputs), inputs[3]) < 2e-5


@pytest.mark.few(3)
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("group", GROUPS[:3], ids=str)
@pytest.mark.parametrize("form", ["products", "products, blocks of 3", "blocks of 4", "one block"])
def test_windows_reach_back_into_the_prompt(form, group, window):
  """As far as they would if each response stood behind the prompt alone."""
  inputs = arrays(group)
  at, position = np.arange(group.length), group.positions(inputs[3])
  sees = jnp.asarray(group.sees(at[:, None], at[None])) & (position[:, None, :] > position[:, :, None] - window)
  expected = graded(lambda q, k, v, mask: attend(q, k, v, sees & mask[:, None, :]))(*inputs)
  found = graded(functools.partial(FORMS[form], group=group, window=window))(*inputs)
  assert error(found, expected, inputs[3]) < 2e-5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cudnn", "splash"])
@pytest.mark.parametrize("group", [None, GROUPS[0]], ids=["rows", "group"])
def test_kernels_that_are_given_no_window_leave_such_layers_to_matrix_products(kind, group):
  q, k, v, mask, _ = arrays(GROUPS[0])
  found = kernels.attend(kind, None, q, k, v, mask, group=group, window=3)
  np.testing.assert_array_equal(found, attend_causal(q, k, v, mask, group=group, window=3))
  assert np.abs(np.asarray(found - attend_causal(q, k, v, mask, group=group))).max() > 0.1


@pytest.mark.long
@pytest.mark.parametrize("form", ["cudnn", "splash", "blocks of 4", "products"])
def test_half_precision(form):
  group = GROUPS[0]
  inputs = arrays(group, dtype=jnp.bfloat16)
  *exact, mask, cotangent = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float32), inputs)
  exact = graded(dense(group))(*exact, mask, cotangent)
  found, plain = graded(functools.partial(FORMS[form], group=group))(*inputs), graded(dense(group))(*inputs)
  assert {x.dtype for x in found} == {jnp.dtype("bfloat16")}
  assert error(found, exact, mask) < 3 * error(plain, exact, mask)


def test_a_response_sees_its_prompt_and_itself():
  group = PromptGroup(2, 2, 2)
  at = np.arange(6)
  assert group.sees(at[:, None], at[None]).astype(int).tolist() == [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 0, 1, 1],
  ]


def test_positions_go_on_behind_the_prompts_own():
  mask = jnp.array([[False, True, True, True, True, False, False], [False, False, True, True, False, True, True]])
  assert PromptGroup(3, 2, 2).positions(mask).tolist() == [[0, 0, 1, 2, 3, 2, 3], [0, 0, 0, 1, 2, 1, 2]]


def test_rows_and_back():
  group = PromptGroup(3, 2, 2)
  a = jnp.arange(14).reshape(2, 7)
  assert group.as_rows(a)[:2].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]]
  np.testing.assert_array_equal(group.from_rows(group.as_rows(a)), a)


@pytest.mark.parametrize("group", [PromptGroup(13, 3, 15), PromptGroup(16, 2, 16), PromptGroup(1, 5, 7)], ids=str)
def test_the_mask_of_splash_is_what_tokens_see(group):
  """Read block by block, padding behind the group included."""
  length = -(-group.length // 16) * 16
  mask, at = kernels.splash_mask(length, group), np.arange(length)
  for q in range(0, length, 16):
    for k in range(0, length, 16):
      queries, keys = slice(q, q + 16), slice(k, k + 16)
      np.testing.assert_array_equal(mask[queries, keys], group.sees(at[queries, None], at[None, keys]))


def test_splash_lowers_for_tpus_without_scores():
  group = PromptGroup(300, 4, 100)
  inputs = arrays(group, p=2, dtype=jnp.bfloat16)
  program = lowered(functools.partial(kernels.attend, "splash", None, group=group), "tpu", *inputs)
  assert program.count("tpu_custom_call") >= 3
  assert f"{group.length}x{group.length}x" not in program


def test_scores_between_responses_never_exist():
  """And in blocks those of all responses at a time do not either."""
  group = PromptGroup(300, 8, 64)
  inputs = arrays(group, p=1)
  for form, largest in (("products", group.n * group.response * group.prompt), ("one block", 128 * group.prompt)):
    compiled = graded(functools.partial(FORMS[form], group=group)).lower(*inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * N * 8 * largest
    assert f"{group.length},{group.length}]" not in (compiled.as_text() or "")


CFG = decoder.DecoderConfig(
  vocab=24, d_model=16, layers=2, heads=4, kv_heads=2, head_width=4, ff_width=24, qk_norm=True
)


@pytest.mark.long
@pytest.mark.parametrize(
  "attention", [attend_causal, functools.partial(blockwise.attend, block=4)], ids=["xla", "blocks"]
)
@pytest.mark.parametrize(("p", "n", "P", "H"), [(2, 3, 6, 5), (3, 2, 3, 1)])
def test_responses_behind_one_prompt_are_those_behind_a_prompt_each(p, n, P, H, attention):
  """Hidden states at real tokens, and the gradient of every parameter."""
  rng = np.random.default_rng(0)
  params = decoder.init(CFG, jax.random.key(0), scale=0.3)
  prompt, response = (jnp.asarray(rng.integers(0, 24, size), jnp.int32) for size in ((p, P), (p * n, H)))
  prompt_mask = jnp.asarray(np.arange(P) >= rng.integers(0, P, (p, 1)))
  mask = jnp.asarray(np.arange(H) < rng.integers(1, H + 1, (p * n, 1)))

  def value(params, prompt, prompt_mask):
    options = {"attention_fn": attention}
    x = decoder.response_hidden(params, CFG, prompt, prompt_mask, response, mask, **options)
    return jnp.sum(jnp.where(mask[..., None], jnp.sin(x), 0)), jnp.where(mask[..., None], x, 0)

  once = jax.jit(jax.value_and_grad(value, has_aux=True))(params, prompt, prompt_mask)
  repeated = (jnp.repeat(a, n, axis=0) for a in (prompt, prompt_mask))
  (_, expected), expected_gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(params, *repeated)
  (_, found), gradient = once
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
  scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected_gradient))
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5 * scale)
