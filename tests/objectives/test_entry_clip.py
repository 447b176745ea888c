"""What a clip of the divergence's entries does to the direction of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.objectives import divergence
from opd_jax.objectives.divergence import Objective

S, T = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))


def gradient(objective: Objective, x, t):
  return jax.grad(lambda x: jnp.sum(divergence.divergence(objective, jax.nn.log_softmax(x), t)))(x)


def test_a_clip_can_turn_the_loss_round():
  """The worked pair: two of three entries are at the clip, and a step raises the id that the student overrates."""
  clipped, whole = Objective(3, kind="forward_kl", entry_clip=0.05), Objective(3, kind="forward_kl")
  np.testing.assert_allclose(divergence.entries(whole, S, T), [-0.2506, 0.4581, 0.3296], atol=1e-4)
  np.testing.assert_allclose(gradient(clipped, S, T), [-0.06, 0.04, 0.02], atol=1e-6)
  np.testing.assert_allclose(gradient(whole, S, T), [0.5, -0.3, -0.2], atol=1e-6)
  assert divergence.opposed(divergence.clip_sums(clipped, S, T)) == 1
  wide = Objective(3, kind="forward_kl", entry_clip=1.0)
  assert divergence.opposed(divergence.clip_sums(wide, S, T)) == 0


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("clip", [0.01, 0.1])
def test_it_is_the_sign_of_the_two_gradients_product(kind, clip):
  keys = jax.random.split(jax.random.key(0), 2)
  x, t = jax.random.normal(keys[0], (200, 7)) * 2, jax.nn.log_softmax(jax.random.normal(keys[1], (200, 7)) * 2)
  clipped, whole = Objective(7, kind=kind, entry_clip=clip), Objective(7, kind=kind)
  by_autodiff = np.sum(np.asarray(gradient(clipped, x, t) * gradient(whole, x, t), np.float64), axis=-1)
  found = divergence.opposed(divergence.clip_sums(clipped, jax.nn.log_softmax(x), t))
  sure = np.abs(by_autodiff) > 1e-6
  np.testing.assert_array_equal(np.asarray(found)[sure], (by_autodiff < 0)[sure])
  assert sure.sum() > 100


def test_parts_of_the_vocabulary_add_up():
  clipped = Objective(3, kind="forward_kl", entry_clip=0.05)
  parts = divergence.clip_sums(clipped, S[:2], T[:2]) + divergence.clip_sums(clipped, S[2:], T[2:])
  np.testing.assert_allclose(parts, divergence.clip_sums(clipped, S, T), atol=1e-6)
