"""Masked diffusion sampling against a slow reference in Python, against commits worked out by hand, and from what it records."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.models import decoder
from opd_jax.rollout import sample
from opd_jax.rollout.denoise import GIVEN, REMASKING, DenoiserConfig, Denoising, canvas_at, denoise
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Batch

V, MASK, STOP, PAD = 23, 22, 21, 20
CFG = decoder.DecoderConfig(
  vocab=V, d_model=16, layers=2, heads=2, kv_heads=1, head_width=8, ff_width=24, causal=False, mask_id=MASK
)
SAMPLING = Sampling((STOP,), PAD, V, temperature=0.9)
P, H = 5, 12


@functools.cache
def params():
  with jax.ensure_compile_time_eval():  # also where a program is traced
    return decoder.init(CFG, jax.random.key(0), scale=0.6)


def prompts(lengths=(5, 2, 3)):
  tokens = np.random.default_rng(0).integers(0, 20, (len(lengths), P))
  return Batch(prompt=jnp.asarray(tokens), prompt_mask=jnp.arange(P) >= P - jnp.array(lengths)[:, None])  # pyright: ignore[reportArgumentType]


@functools.partial(jax.jit, static_argnums=(0, 3), static_argnames=("n",))
def run(config: DenoiserConfig, batch, key, length=H, n=1, start=None):
  return config.rollout(params(), batch, key, response_len=length, n=n, start=start)


def config(sampling=SAMPLING, cfg=CFG, **changes) -> DenoiserConfig:
  denoising = dataclasses.replace(Denoising(4, 3), **changes)
  return DenoiserConfig(cfg, sampling, denoising, meshes.make(devices=jax.devices()[:1]), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def canvas_logits(cfg, prompt, mask, canvas):
  return decoder.unembed(params(), decoder.canvas_hidden(params(), cfg, prompt, mask, canvas))


def slow(c: DenoiserConfig, batch: Batch, key, row: int) -> tuple[list[int], list[int]]:
  """One row, one position after the other: its tokens and their steps."""
  d, temperature = c.denoising, c.sampling.temperature
  tokens, steps, t = [MASK] * H, [-2] * H, 0
  own = jax.random.fold_in(key, row)
  times = np.linspace(1, d.eps, d.steps + 1, dtype=np.float32)
  for first in range(0, H, d.block):
    positions = range(first, first + d.block)
    entry = sum(tokens[j] == MASK for j in positions)
    for i in range(d.steps):
      canvas = jnp.array([[x if s != -2 else MASK for x, s in zip(tokens, steps, strict=True)]])
      logits = np.asarray(canvas_logits(c.cfg, batch.prompt[row][None], batch.prompt_mask[row][None], canvas))[0]
      step_keys = jax.random.split(jax.random.fold_in(own, t), d.block + 1)
      uniform = np.asarray(jax.random.uniform(step_keys[d.block], (d.block,)))
      noise = np.asarray(jax.random.gumbel(step_keys[d.block], (d.block,), mode="high"))
      candidates = []
      for place, j in enumerate(positions):
        if steps[j] != -2:
          continue
        row_logits = logits[j].copy()
        row_logits[MASK] = -np.inf
        if d.eos == "never":
          row_logits[STOP] = -np.inf
        drawn, _ = sample.draw(step_keys[place][None], jnp.asarray(row_logits)[None], c.sampling)
        x = int(drawn[0])
        plain = np.exp(row_logits - np.max(row_logits))
        plain /= plain.sum()
        cool = np.exp((row_logits - np.max(row_logits)) / (temperature or 1.0))
        cool /= cool.sum()
        most = np.sort(cool)[::-1]
        confidence = {
          "low_confidence": plain[x],
          "maskgit_plus": cool[x],
          "random": uniform[place],
          "origin": uniform[place],
          "margin": most[0] - most[1],
          "entropy": np.sum(cool[cool > 0] * np.log(cool[cool > 0])),
        }[d.remasking]
        if d.confidence_temperature:
          confidence = confidence / d.confidence_temperature + noise[place]
        if d.eos == "last" and x == STOP:
          confidence = -1e9
        candidates.append((-confidence, j, x))
      share = 1.0 if i == d.steps - 1 else 1 - times[i + 1] / times[i]
      if d.remasking == "origin":
        committed = [(c, j, x) for c, j, x in candidates if -c < share]
      elif d.schedule == "linear":
        committed = sorted(candidates)[: int(len(candidates) * share)]
      else:
        committed = sorted(candidates)[: entry // d.steps + (i < entry % d.steps)]
      for _, j, x in committed:
        tokens[j], steps[j] = x, t
      t += 1
  return tokens, steps


def equal_to_slow(c: DenoiserConfig) -> Any:
  batch, key = prompts(), jax.random.key(7)
  found = run(c, batch, key)
  wanted = [slow(c, batch, key, row) for row in range(3)]
  np.testing.assert_array_equal(found.response, [tokens for tokens, _ in wanted])
  np.testing.assert_array_equal(found.committed_at, [steps for _, steps in wanted])
  return found


@pytest.mark.few(3)
@pytest.mark.parametrize("remasking", [name for name in REMASKING if name != "origin"])
@pytest.mark.parametrize("eos", ["plain", "last", "never"])
def test_tokens_and_steps_are_those_of_the_slow_reference(remasking, eos):
  found = equal_to_slow(config(remasking=remasking, eos=eos))
  assert MASK not in np.asarray(found.response)
  assert (STOP in np.asarray(found.response)) <= (eos != "never")


DREAM = {"block": H, "steps": 5, "schedule": "linear"}
SHIFTED = dataclasses.replace(CFG, shifted=True)


@pytest.mark.few(3)
@pytest.mark.parametrize("remasking", REMASKING)
@pytest.mark.parametrize("steps", [5, H])
def test_dreams_tokens_and_steps_are_those_of_the_slow_reference(remasking, steps):
  """Predictions stand one position further left, and the canvas is one block."""
  c = config(cfg=SHIFTED, remasking=remasking, **(DREAM | {"steps": steps}))
  committed = np.asarray(equal_to_slow(c).committed_at)
  counts = np.array([np.bincount(row, minlength=steps) for row in committed])
  assert counts.max() <= c.denoising.tokens
  if remasking == "origin":
    assert len({tuple(row) for row in counts.tolist()}) > 1, "each mask is committed by itself"
  else:
    assert counts.tolist() == [{5: [2, 2, 2, 2, 4], H: [0, *[1] * 10, 2]}[steps]] * 3


@pytest.mark.long
@pytest.mark.parametrize(
  "changes",
  [
    {"remasking": "maskgit_plus", **DREAM},
    {"remasking": "entropy", "eos": "last", **DREAM},
    {"remasking": "low_confidence"},
  ],
)
def test_masks_that_are_drawn_by_their_confidence_are_those_of_the_slow_reference(changes):
  drawn = equal_to_slow(config(confidence_temperature=0.3, **changes))
  highest = run(config(**changes), prompts(), jax.random.key(7))
  assert (np.asarray(drawn.committed_at) != np.asarray(highest.committed_at)).any()


@pytest.mark.long
@pytest.mark.parametrize(("top_k", "top_p", "temperature"), [(3, 1.0, 0.7), (0, 0.6, 1.3), (3, 1.0, 0.0)])
def test_maskgit_plus_is_the_probability_behind_temperature_and_filters(top_k, top_p, temperature):
  """Of positions that no token has been committed around, in numpy: the share of the drawn token in what may be drawn."""
  sampling = dataclasses.replace(SAMPLING, top_k=top_k, top_p=top_p, temperature=temperature)
  batch = prompts()
  found = run(config(sampling, remasking="maskgit_plus", block=H, steps=H), batch, jax.random.key(2))
  start = jnp.full((3, H), MASK)
  logits = np.array(canvas_logits(CFG, batch.prompt, batch.prompt_mask, start))
  logits[..., MASK] = -np.inf
  whole = np.exp(logits / (temperature or 1))
  order = np.argsort(-whole, axis=-1)
  for row in range(3):
    confidence = np.zeros(H)
    own = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(2), row), 0), H + 1)
    for j in range(H):
      p, allowed = whole[row, j] / whole[row, j].sum(), []
      for token in order[row, j]:
        if (top_k and len(allowed) == top_k) or p[allowed].sum() >= top_p:
          break
        allowed.append(token)
      drawn, _ = sample.draw(own[j][None], jnp.asarray(logits[row, j])[None], sampling)
      assert int(drawn[0]) in allowed
      confidence[j] = p[int(drawn[0])] / p[allowed].sum()
    assert int(np.argmax(confidence)) == int(np.argmin(np.asarray(found.committed_at)[row]))


def test_what_is_recorded_rebuilds_every_canvas():
  """Replayed: each step adds its tokens, in its block alone, as many as its quota, and the last leaves no mask."""
  c, batch = config(), prompts()
  found = run(c, batch, jax.random.key(1))
  total = c.denoising.total(H)
  canvases = [np.asarray(canvas_at(found.response, found.committed_at, t, MASK)) for t in range(total + 1)]
  assert (canvases[0] == MASK).all()
  assert (canvases[-1] == np.asarray(found.response)).all()
  for t in range(total):
    changed = canvases[t] != canvases[t + 1]
    assert (changed.sum(axis=1) == [2, 1, 1][t % 3]).all()
    assert not changed[:, [j for j in range(H) if j // 4 != t // 3]].any()
    assert (canvases[t][changed] == MASK).all()


@pytest.mark.long
def test_a_row_does_not_depend_on_its_neighbours_nor_on_padding():
  c, key = config(), jax.random.key(3)
  together = run(c, prompts(), key)
  for row in range(3):
    batch = jax.tree.map(lambda a, row=row: a[row : row + 1], prompts())
    batch = dataclasses.replace(batch, number=jnp.array([row]))
    alone = run(c, batch, key)
    np.testing.assert_array_equal(alone.response[0], together.response[row])
    shorter = dataclasses.replace(
      batch, prompt=batch.prompt[:, 5 - (5, 2, 3)[row] :], prompt_mask=batch.prompt_mask[:, 5 - (5, 2, 3)[row] :]
    )
    np.testing.assert_array_equal(run(c, shorter, key).response[0], together.response[row])


@pytest.mark.long
def test_rollouts_of_a_prompt_are_those_of_as_many_copies_of_it():
  c, key = config(), jax.random.key(3)
  copies = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), prompts())
  np.testing.assert_array_equal(run(c, prompts(), key, n=2).response, run(c, copies, key).response)


@pytest.mark.long
def test_the_mask_ends_with_the_first_stop_token():
  found = run(config(dataclasses.replace(SAMPLING, temperature=3.0)), prompts((5,) * 40), jax.random.key(0), n=1)
  response, mask = np.asarray(found.response), np.asarray(found.mask)
  assert 0 < np.mean(found.ended) < 1
  for row in range(40):
    stops = np.flatnonzero(response[row] == STOP)
    assert mask[row].sum() == (stops[0] + 1 if len(stops) else H)
    assert bool(found.ended[row]) == bool(len(stops))


def test_recorded_probabilities_are_those_that_tokens_were_drawn_with():
  c, batch = config(), prompts()
  found = run(c, batch, jax.random.key(5))
  for t in range(c.denoising.total(H)):
    canvas = canvas_at(found.response, found.committed_at, t, MASK)
    logits = canvas_logits(CFG, batch.prompt, batch.prompt_mask, canvas).at[..., MASK].set(-jnp.inf)
    logprob = jax.nn.log_softmax(logits / 0.9)
    wanted = jnp.take_along_axis(logprob, found.response[..., None], axis=-1)[..., 0]
    here = np.asarray(found.committed_at == t)
    np.testing.assert_allclose(np.asarray(found.behavior_logprob)[here], np.asarray(wanted)[here], atol=1e-5)


def test_given_tokens_stay_and_quotas_are_of_the_masks_that_are_there():
  start = np.full((3, H), MASK)
  start[0, [0, 2, 3]], start[1, 5:8], start[2, 8:] = 7, 8, 9
  found = run(config(), prompts(), jax.random.key(1), start=jnp.asarray(start))
  given = start != MASK
  assert (np.asarray(found.response)[given] == start[given]).all()
  assert (np.asarray(found.committed_at)[given] == GIVEN).all()
  committed = np.asarray(found.committed_at)[~given]
  assert set(committed.tolist()) <= set(range(9))
  assert list(np.asarray(found.committed_at)[0]).count(0) == 1  # one mask is left in its first block
  assert MASK not in np.asarray(found.response)


def table(a: list[float], block: int, vocab: int):
  """The logits of a model that prefers the id of each position's number, by so much."""
  logits = jnp.zeros((len(a), vocab)).at[jnp.arange(len(a)), jnp.arange(len(a))].set(jnp.array(a, jnp.float32))

  def predict(canvas, first, i, carried):
    own = jax.lax.dynamic_slice_in_dim(logits, 2 + first, block, axis=0)
    return own[None], carried

  return predict


def commits(found) -> list[set[int]]:
  steps = np.asarray(found.committed_at)[0]
  return [{2 + int(j) for j in np.flatnonzero(steps == t)} for t in range(steps.max() + 1)]


def test_commits_worked_out_by_hand():
  """A model with preferences 1, 4, 2, 3 in the first block and 8, 5, 7, 6 in the second."""
  arguments: dict[str, Any] = {"sampling": Sampling((), 0, 12, temperature=0.0), "mask_id": 12}
  start, keys = jnp.full((1, 8), 12), jax.random.split(jax.random.key(0), 1)
  predict = table([0, 0, 1, 4, 2, 3, 8, 5, 7, 6], 4, 12)
  found = denoise(predict, None, start, keys, denoising=Denoising(4, 2), **arguments)
  assert commits(found) == [{3, 5}, {2, 4}, {6, 8}, {7, 9}]
  assert np.asarray(found.response).tolist() == [[*range(2, 10)]]


def test_dreams_commits_worked_out_by_hand():
  """Predictions 9, 1, 4, 2, 3, 8, 5, 7 of the ids in front of positions 2 to 9; commits by the probability of the drawn token."""
  preferred = jnp.array([9.0, 1.0, 4.0, 2.0, 3.0, 8.0, 5.0, 7.0])
  logits = jnp.zeros((1, 8, 12)).at[0, jnp.arange(8), jnp.arange(1, 9)].set(preferred)
  found = denoise(
    lambda canvas, first, i, carried: (logits, carried),
    None,
    jnp.full((1, 8), 12),
    jax.random.split(jax.random.key(0), 1),
    denoising=Denoising(8, 4, remasking="maskgit_plus", schedule="linear"),
    sampling=Sampling((), 0, 12, temperature=0.0),
    mask_id=12,
  )
  assert commits(found) == [{2}, {7, 9}, {4, 8}, {3, 5, 6}]
  assert np.asarray(found.response).tolist() == [[*range(1, 9)]]


@pytest.mark.parametrize(
  ("masks", "steps", "wanted"),
  [
    (8, 4, [1, 2, 2, 3]),
    (32, 8, [3, 4, 4, 4, 4, 4, 4, 5]),
    (256, 128, [1, *[2] * 126, 3]),
    (256, 256, [0, *[1] * 254, 2]),
    (5, 1, [5]),
  ],
)
def test_quotas_of_dreams_schedule(masks, steps, wanted):
  """Worked out by Dream's own formula in PyTorch (arXiv:2508.15487), where eps is 1e-3."""
  denoising, left = Denoising(masks, steps, schedule="linear"), jnp.array([masks, masks // 2])
  for i, number in enumerate(wanted):
    quota = denoising.quota(left, left, i)
    assert int(quota[0]) == number
    left -= quota
  assert left.tolist() == [0, 0], "of a row with fewer masks too"
  assert denoising.tokens == max(wanted)


def test_rows_with_given_tokens_have_quotas_of_their_own():
  """Dream's code takes the mean of the rows, and so writes masks over the prompts of those with fewer."""
  start = np.full((3, H), MASK)
  start[0, :7], start[1, 3] = 5, 6
  found = run(config(**DREAM), prompts(), jax.random.key(1), start=jnp.asarray(start))
  assert (np.asarray(found.response)[start != MASK] == start[start != MASK]).all()
  counts = [[int((row == t).sum()) for t in range(5)] for row in np.asarray(found.committed_at)]
  assert counts == [[0, 1, 1, 1, 2], [2, 2, 2, 2, 3], [2, 2, 2, 2, 4]]


def test_origin_commits_each_mask_with_the_share_of_the_step():
  """Times 1, 0.7, 0.4: the first step commits 0.3 of the masks, the second 0.3 / 0.7 of those left, and the last all others."""
  n = 5000
  found = denoise(
    lambda canvas, first, i, carried: (jnp.zeros((n, 4, 3)), carried),
    None,
    jnp.full((n, 4), 2),
    jax.random.split(jax.random.key(0), n),
    denoising=Denoising(4, 3, remasking="origin", schedule="linear", eps=0.1),
    sampling=Sampling((), 0, 3),
    mask_id=2,
  )
  at = np.asarray(found.committed_at)
  np.testing.assert_allclose([(at == 0).mean(), (at == 1).mean(), (at == 2).mean()], [0.3, 0.3, 0.4], atol=0.015)
  together = np.bincount((at == 0).sum(axis=1), minlength=5) / n
  np.testing.assert_allclose(together, [0.2401, 0.4116, 0.2646, 0.0756, 0.0081], atol=0.02)  # of four draws


def test_a_confidence_temperature_draws_from_the_softmax_of_confidence():
  """Of two positions with probabilities 0.9 and 0.5 of their likeliest token the first is committed first as often as the softmax says."""
  n = 20_000
  logits = jnp.log(jnp.array([[0.9, 0.1, 1e-30], [0.5, 0.5, 1e-30]]))
  found = denoise(
    lambda canvas, first, i, carried: (jnp.tile(logits, (n, 1, 1)), carried),
    None,
    jnp.full((n, 2), 2),
    jax.random.split(jax.random.key(0), n),
    denoising=Denoising(2, 2, remasking="maskgit_plus", confidence_temperature=0.5),
    sampling=Sampling((), 0, 3, temperature=0.0),
    mask_id=2,
  )
  first = float(np.mean(np.asarray(found.committed_at)[:, 0] == 0))
  assert first == pytest.approx(1 / (1 + np.exp((0.5 - 0.9) / 0.5)), abs=0.01)


@pytest.mark.parametrize(
  ("remasking", "wanted"), [("margin", [0.3, 0.01]), ("entropy", [-0.898, -0.742]), ("maskgit_plus", [0.6, 0.5])]
)
def test_confidences_order_positions_differently(remasking, wanted):
  """Of probabilities (0.6, 0.3, 0.1) and (0.5, 0.49, 0.01): the second is the surer one by entropy alone."""
  logits = jnp.log(jnp.array([[0.6, 0.3, 0.1, 1e-30], [0.5, 0.49, 0.01, 1e-30]]))[None]
  found = denoise(
    lambda canvas, first, i, carried: (logits, carried),
    None,
    jnp.full((1, 2), 3),
    jax.random.split(jax.random.key(0), 1),
    denoising=Denoising(2, 2, remasking=remasking),
    sampling=Sampling((), 0, 4, temperature=0.0),
    mask_id=3,
  )
  assert int(np.argmin(np.asarray(found.committed_at)[0])) == int(np.argmax(wanted))


@pytest.mark.parametrize(
  "changes",
  [
    {"remasking": "origin"},
    {"remasking": "origin", "schedule": "linear", "eos": "last"},
    {"remasking": "random", "confidence_temperature": 0.1},
    {"schedule": "cosine"},
    {"steps": 5},
  ],
)
def test_settings_without_a_meaning_are_refused(changes):
  with pytest.raises(ValueError, match=r"origin commits|no confidence|not one of|takes 1 to 4 steps"):
    Denoising(4, **({"steps": 2} | changes))


@pytest.mark.parametrize(
  ("masks", "steps", "wanted"),
  [(10, 4, [3, 3, 2, 2]), (3, 8, [1, 1, 1, 0, 0, 0, 0, 0]), (32, 16, [2] * 16)],
)
def test_quotas(masks, steps, wanted):
  denoising = Denoising(32, steps)
  assert [int(denoising.quota(jnp.int32(masks), jnp.int32(0), i)) for i in range(steps)] == wanted


@pytest.mark.long
@pytest.mark.parametrize(("temperature", "wanted"), [(0.5, (0.117, 0.867, 0.016)), (2.0, (0.307, 0.506, 0.186))])
def test_draws_have_the_probabilities_of_the_softmax(temperature, wanted):
  n = 100_000
  logits = jnp.tile(jnp.array([0.0, 1.0, -1.0, 0.0]), (n, 1, 1))
  found = denoise(
    lambda canvas, first, i, carried: (logits, carried),
    None,
    jnp.full((n, 1), 3),
    jax.random.split(jax.random.key(0), n),
    denoising=Denoising(1, 1),
    sampling=Sampling((), 0, 4, temperature=temperature),
    mask_id=3,
  )
  np.testing.assert_allclose(np.bincount(np.asarray(found.response)[:, 0], minlength=3) / n, wanted, atol=0.005)


@pytest.mark.parametrize(("eos", "place", "token"), [("plain", 0, 9), ("never", 0, 7), ("last", 1, 7)])
def test_stop_tokens_race_with_others_or_wait_or_do_not_come(eos, place, token):
  """Of two positions the first prefers the stop token by 10 to 8, and the second another one by 1."""
  logits = jnp.zeros((1, 2, 11)).at[0, 0, 9].set(10.0).at[0, 0, 7].set(8.0).at[0, 1, 7].set(1.0)
  found = denoise(
    lambda canvas, first, i, carried: (logits, carried),
    None,
    jnp.full((1, 2), 10),
    jax.random.split(jax.random.key(0), 1),
    denoising=Denoising(2, 2, eos=eos),
    sampling=Sampling((9,), 0, 11, temperature=0.0),
    mask_id=10,
  )
  assert int(np.argmin(np.asarray(found.committed_at)[0])) == place
  assert int(found.response[0, place]) == token


@pytest.mark.long
@pytest.mark.parametrize(("shifted", "changes"), [(False, {}), (True, {}), (True, DREAM)])
def test_a_cached_block_is_exact_in_its_first_step_and_near_in_the_others(shifted, changes):
  cfg = dataclasses.replace(CFG, shifted=shifted)
  greedy = dataclasses.replace(SAMPLING, temperature=0.0)
  one = changes | {"steps": 1}  # every step enters a block
  exact, cached = (
    run(config(greedy, cfg, cache=cache, **one), prompts(), jax.random.key(0)) for cache in (False, True)
  )
  np.testing.assert_array_equal(cached.response, exact.response)
  np.testing.assert_allclose(cached.behavior_logprob, exact.behavior_logprob, atol=1e-5)
  several = [
    run(config(greedy, cfg, cache=cache, **changes), prompts((5, 4, 3, 2) * 8), jax.random.key(0))
    for cache in (False, True)
  ]
  same = np.mean(np.asarray(several[0].response) == np.asarray(several[1].response))
  assert same > 0.5  # an approximation, whose error docs/diffusion.md has


def test_a_canvas_of_no_whole_number_of_blocks_is_refused():
  with pytest.raises(InputError, match="A canvas of 10 tokens has no whole number of blocks of 4"):
    Denoising(4, 2).total(10)
