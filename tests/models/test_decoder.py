"""The decoder beyond parity with PyTorch (test_hf.py): blocks of queries, padding, response alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import decoder
from opd_jax.models.attention import attend_causal
from tests.conftest import STUDENT


@pytest.mark.parametrize("block", [4, 5, 11])
def test_attention_in_blocks_of_queries_is_attention(block):
  """Value and gradient, also where the block does not divide the length and where padding stands on the left."""
  rng = np.random.default_rng(0)

  def draw(n):
    return jnp.asarray(rng.normal(size=(2, 11, n, 8)), jnp.float32)

  q, k, v = draw(4), draw(2), draw(2)
  mask = jnp.asarray(np.arange(11) >= np.array([[0], [3]]))

  def outcome(block):
    def f(q, k, v):
      return jnp.sum(jnp.where(mask[..., None, None], attend_causal(q, k, v, mask, block), 0.0) ** 2)

    return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), outcome(block), outcome(100))


def test_blocks_bound_the_scores_that_are_held():
  """Temporaries of the gradient grow with T and not with T squared."""

  def temporaries(T, block):
    shape = jax.ShapeDtypeStruct((1, T, 4, 8), jnp.float32)

    def f(q, k, v):
      return jnp.sum(attend_causal(q, k, v, jnp.ones((1, T), bool), block))

    program = jax.jit(jax.grad(f, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    return program.memory_analysis().temp_size_in_bytes

  scores = 4 * 1024 * 1024 * 4
  assert temporaries(1024, 2048) > scores
  assert temporaries(1024, 64) < scores / 2


def test_padding_on_the_right_and_left_changes_nothing(student):
  hidden = jax.jit(lambda tokens, mask: decoder.hidden(student, STUDENT, tokens, mask))
  alone = hidden(np.array([[5, 9, 11, 3]]), np.ones((1, 4), bool))
  wide, mask = np.array([[7, 7, 5, 9, 11, 3, 8]]), np.array([[False, False, True, True, True, True, False]])
  np.testing.assert_allclose(np.asarray(hidden(wide, mask))[:, 2:6], alone, atol=1e-5)


def test_response_states_predict_their_own_token(student, prompts):
  """State i of a row predicts response token i, under any prompt."""
  rng = np.random.default_rng(1)
  response = rng.integers(2, 37, (4, 5))
  respond = jax.jit(lambda *arrays: decoder.response_hidden(student, STUDENT, *arrays))
  states = np.asarray(respond(prompts.prompt, prompts.prompt_mask, response, np.ones((4, 5), bool)))
  assert states.shape == (4, 5, STUDENT.d_model)
  run = jax.jit(lambda tokens, there: decoder.hidden(student, STUDENT, tokens, there))  # one shape: padded at the end
  for row in range(4):
    prompt = np.asarray(prompts.prompt[row])[np.asarray(prompts.prompt_mask[row])]
    for i in range(5):
      tokens = np.concatenate([prompt, response[row, :i]])
      padded = np.pad(tokens, (0, 10 - len(tokens)))[None]
      last = np.asarray(run(padded, np.arange(10)[None] < len(tokens)))[0, len(tokens) - 1]
      np.testing.assert_allclose(states[row, i], last, atol=2e-5)
