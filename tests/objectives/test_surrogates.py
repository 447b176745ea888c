"""Surrogates of the policy gradient: closed forms against autodiff, their limits, and where they stop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.objectives import surrogates
from opd_jax.objectives.surrogates import SURROGATES, Surrogate

N = 400
CHANGES = {
  "threshold": ({"threshold": 0.15}, {"threshold": 2.5}),
  "clip_low": ({"clip_low": 0.1, "clip_high": 0.3},),
  "dual_clip": ({"dual_clip": 3.0},),
  "cap": ({"cap": 2.0},),
  "divergence": ({"divergence": "kl", "threshold": 0.05}, {"divergence": "topk_tv"}),
  "mask_threshold": ({"mask_threshold": 0.05},),
  "advantage_scale": ({"advantage_scale": False},),
}
ALL = [
  Surrogate(kind, **change)
  for kind, of_kind in SURROGATES.items()
  for change in ({}, *itertools.chain(*(CHANGES.get(key, ()) for key in of_kind.parameters)))
]


def name(s: Surrogate) -> str:
  default = Surrogate(s.kind)
  changed = [f"{k}={v}" for k, v in vars(s).items() if v != getattr(default, k)]
  return " ".join([s.kind, *changed])


def draw(seed: int = 0):
  """Draws log pi, log mu, advantages and distances; some mu are tiny, and some tokens have not moved."""
  rng = np.random.default_rng(seed)
  mu = rng.uniform(0, 1, N) ** 4 + 1e-4
  mu = np.minimum(mu, 0.999)
  pi = np.clip(mu * np.exp(rng.normal(size=N) * 0.6), 1e-6, 0.999)
  pi[:20] = mu[:20]
  advantage = rng.normal(size=N)
  advantage[20:30] = 0
  return tuple(jnp.asarray(a, jnp.float32) for a in (np.log(pi), np.log(mu), advantage, rng.uniform(0, 0.4, N)))


@pytest.mark.few(3)
@pytest.mark.parametrize("s", ALL, ids=name)
def test_the_closed_form_is_the_derivative_of_the_loss(s):
  with jax.enable_x64(True):
    logprob, anchor, advantage, moved = (jnp.asarray(a, jnp.float64) for a in draw())
    by_autodiff = jax.grad(lambda x: jnp.sum(s.loss(x, anchor, advantage, moved)))(logprob)
    got = s.coefficient(logprob, anchor, advantage, moved)
    # At a kink of |r - 1| any derivative between the sides is one; there the closed form takes the middle.
    np.testing.assert_allclose(got[20:], by_autodiff[20:], rtol=1e-6, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("s", ALL, ids=name)
def test_the_coefficient_is_advantage_times_ratio_times_weight(s):
  logprob, anchor, advantage, moved = draw(1)
  w = s.weight(logprob, anchor, advantage, moved)
  counted = np.asarray(advantage) != 0
  got = s.coefficient(logprob, anchor, advantage, moved)
  np.testing.assert_allclose(got[counted], (-advantage * jnp.exp(logprob - anchor) * w)[counted], rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(w[~counted], 1)


def through_softmax(s: Surrogate, logits, anchor, token, advantage):
  """The gradient by logits of one token's loss."""
  return jax.grad(lambda x: s.loss(jax.nn.log_softmax(x)[token], anchor, jnp.float64(advantage)))(logits)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["drpo", "spo", "kl", "k3"])
def test_through_a_softmax_it_is_the_weighted_gradient_of_the_log_probability(kind):
  with jax.enable_x64(True):
    logits = jnp.asarray(np.random.default_rng(3).normal(size=7))
    log = jax.nn.log_softmax(logits)
    for token, advantage in ((0, 0.7), (3, -1.2)):
      anchor = log[token] - 0.3
      s = Surrogate(kind, threshold=0.2)
      by_log = jax.nn.one_hot(token, 7) - jnp.exp(log)
      w = s.weight(log[token], anchor, jnp.float64(advantage))
      expected = -advantage * jnp.exp(log[token] - anchor) * w * by_log
      np.testing.assert_allclose(through_softmax(s, logits, anchor, token, advantage), expected, rtol=1e-6)


@pytest.mark.parametrize(
  "s", [Surrogate(kind) for kind in ("is", "ppo_clip", "dppo", "spo", "drpo", "mask_drpo")], ids=name
)
def test_tokens_that_have_not_moved_have_the_plain_gradient(s):
  _, anchor, advantage, _ = draw(2)
  np.testing.assert_allclose(s.coefficient(anchor, anchor, advantage), -advantage, rtol=1e-6)


def test_a_large_threshold_is_the_importance_weighted_gradient():
  logprob, anchor, advantage, _ = draw(4)
  plain = Surrogate("is").coefficient(logprob, anchor, advantage)
  np.testing.assert_allclose(Surrogate("drpo", threshold=1e9).coefficient(logprob, anchor, advantage), plain, rtol=1e-5)


def test_the_published_threshold_never_binds():
  """|pi - mu| is at most 1, so with 12.5 every weight is within 8% of 1."""
  rng = np.random.default_rng(5)
  pi, mu = jnp.log(rng.uniform(1e-6, 1, (2, 10_000)).astype(np.float32))
  w = Surrogate("drpo", threshold=12.5).weight(pi, mu, jnp.asarray(rng.choice([-1.0, 1.0], 10_000), jnp.float32))
  assert 0.92 - 1e-6 <= float(w.min()) < 0.93
  assert 1.07 < float(w.max()) <= 1.08 + 1e-6


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mu", [0.3, 0.5, 0.7])
def test_drpo_has_its_weight_0_where_the_probability_has_moved_by_the_threshold_and_turns_beyond(mu, sign):
  s, A = Surrogate("drpo", threshold=0.15), jnp.float32(sign)

  def weight(pi):
    return float(s.weight(jnp.log(pi), jnp.log(mu), A))

  assert weight(mu + sign * 0.15) == pytest.approx(0, abs=1e-5)
  assert weight(mu + sign * 0.16) < 0 < weight(mu + sign * 0.14)
  assert weight(mu - sign * 0.15) == pytest.approx(2, abs=1e-5)


def minimiser(s: Surrogate, mu: float, advantage: float) -> float:
  """Finds where the loss of a token that is drawn with probability mu has its least value, on a grid of probabilities."""
  pi = jnp.linspace(1e-4, 1 - 1e-4, 20_001)
  loss = s.loss(jnp.log(pi), jnp.full_like(pi, jnp.log(mu)), jnp.full_like(pi, advantage))
  return float(pi[jnp.argmin(loss)])


@pytest.mark.parametrize(("mu", "best"), [(0.02, 0.17), (0.3, 0.45), (0.7, 0.85)])
@pytest.mark.parametrize("advantage", [0.1, 1.0, 3.0])
def test_a_single_token_stops_a_threshold_away_whatever_its_advantage(mu, best, advantage):
  assert minimiser(Surrogate("drpo", threshold=0.15), mu, advantage) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("mu", "best"), [(0.02, 0.024), (0.7, 0.84)])
def test_spo_stops_a_fixed_ratio_away_so_that_rare_tokens_hardly_move(mu, best):
  assert minimiser(Surrogate("spo", threshold=0.2), mu, 1.0) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(
  ("advantage", "ratio", "stopped"), [(1, 1.5, True), (1, 0.5, False), (-1, 0.5, True), (-1, 1.5, False)]
)
@pytest.mark.parametrize("s", [Surrogate("ppo_clip", clip_low=0.2, clip_high=0.28), Surrogate("dppo")], ids=name)
def test_a_token_is_stopped_on_its_way_out_alone(s, advantage, ratio, stopped):
  mu = 0.5
  got = s.weight(jnp.log(mu * ratio), jnp.log(mu), jnp.float32(advantage))
  assert float(got) == (0 if stopped else 1)


def test_the_upper_and_the_lower_clip_are_apart():
  s = Surrogate("ppo_clip", clip_low=0.2, clip_high=0.28)
  ratio = jnp.array([1.27, 1.29, 0.79, 0.81])
  advantage = jnp.array([1.0, 1.0, -1.0, -1.0])
  np.testing.assert_array_equal(s.weight(jnp.log(0.5 * ratio), jnp.full(4, jnp.log(0.5)), advantage), [1, 0, 0, 1])


def test_the_dual_clip_stops_tokens_that_have_become_far_too_likely_and_ought_not():
  s = Surrogate("ppo_clip", dual_clip=3.0)
  ratio = jnp.array([2.9, 3.1, 3.1])
  advantage = jnp.array([-1.0, -1.0, 1.0])
  np.testing.assert_array_equal(s.weight(jnp.log(0.1 * ratio), jnp.full(3, jnp.log(0.1)), advantage), [1, 0, 0])


def test_dppo_with_the_ratio_as_its_distance_is_ppos_mask():
  logprob, anchor, advantage, _ = draw(6)
  ratio = jnp.exp(logprob - anchor)
  ppo = Surrogate("ppo_clip", clip_low=0.2, clip_high=0.2).weight(logprob, anchor, advantage)
  by_ratio = Surrogate("dppo", divergence="topk_tv", threshold=0.2).weight(
    logprob, anchor, advantage, jnp.abs(ratio - 1)
  )
  np.testing.assert_array_equal(ppo, by_ratio)


def test_a_rare_token_that_doubles_is_stopped_by_the_ratio_and_kept_by_the_probability():
  args = jnp.log(0.002), jnp.log(0.001), jnp.float32(1)
  assert float(Surrogate("ppo_clip").weight(*args)) == 0
  assert float(Surrogate("dppo").weight(*args)) == 1
  assert float(Surrogate("drpo").weight(*args)) == pytest.approx(1, abs=0.01)
  assert float(Surrogate("spo", threshold=0.2).weight(*args)) == pytest.approx(-4, abs=1e-3)


def distributions(seed: int, V: int):
  rng = np.random.default_rng(seed)
  return (jax.nn.log_softmax(jnp.asarray(rng.normal(size=(200, V)) * 1.5, jnp.float32)) for _ in range(2))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_fewer_ids_see_at_most_what_all_of_them_see(kind):
  V = 12
  mu, pi = distributions(7, V)
  token = jnp.asarray(np.random.default_rng(8).integers(0, V, 200))

  def at(log, ids):
    return jnp.take_along_axis(log, ids, axis=1)

  drawn, drawn_now = at(mu, token[:, None])[:, 0], at(pi, token[:, None])[:, 0]
  full = jnp.sum(jnp.abs(jnp.exp(mu) - jnp.exp(pi)), 1) / 2 if kind == "tv" else jnp.sum(jnp.exp(mu) * (mu - pi), 1)

  def topk(k):
    recorded, ids = jax.lax.top_k(mu, k)
    among = jnp.any(ids == token[:, None], axis=1)
    return surrogates.topk_distance(f"topk_{kind}", recorded, at(pi, ids), drawn, drawn_now, among)

  np.testing.assert_allclose(topk(V), full, rtol=1e-3, atol=1e-6)
  binary = jnp.abs(jnp.exp(drawn) - jnp.exp(drawn_now)) if kind == "tv" else surrogates.binary_kl(drawn, drawn_now)
  assert np.all(topk(4) <= full + 1e-5)
  assert np.all(binary <= topk(4) + 1e-5), "merging entries loses distance"


def test_a_token_that_became_certain_or_impossible_stays_finite():
  for s in ALL:
    args = jnp.array([0.0, -80.0, -1.0]), jnp.array([-80.0, 0.0, -1.0]), jnp.array([1.0, -1.0, 1.0]), jnp.zeros(3)
    assert np.all(np.isfinite(s.coefficient(*args))), s
    assert np.all(np.isfinite(s.loss(*args))), s


@pytest.mark.parametrize("change", [{"kind": "grpo"}, {"divergence": "jsd"}])
def test_names_that_do_not_exist_are_refused(change):
  with pytest.raises(ValueError, match="is not one of"):
    Surrogate(**change)
