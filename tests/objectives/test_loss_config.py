"""Configs and their losses: what every key becomes, and which combinations are refused."""

import dataclasses

import pytest

from opd_jax import checks, config
from opd_jax.errors import InputError
from opd_jax.objectives import loss_config as losses
from opd_jax.objectives.surrogates import Surrogate

OPD = config.load("opd")
SAMPLE = {"objective.support": "sampled"}
FORWARD = SAMPLE | {"objective.kind": "forward_kl"}
REUSE = {"updates_per_rollout": 2}
REWARDED = config.override(OPD, {"mixture.divergence": 0.0, "mixture.reward": 1.0, "rollouts_per_prompt": 2})

# Name: the wrong overrides, the key that the message names, and pieces of the message with the remedy that each gives.
REFUSED = {
  "suppress without drawn tokens": (
    {"objective.kind": "suppress"},
    "objective.kind",
    {"set objective.support=sampled": {"objective.support": "sampled"}},
  ),
  "the future of a whole distribution": (
    {"objective.future": "mean"},
    "objective.future",
    {"support 'sampled'": {"objective.support": "sampled"}},
  ),
  "a mean and a discount": (
    SAMPLE | {"objective.future": "mean", "objective.discount": 0.5},
    "objective.discount",
    {"set it to 0": {"objective.discount": 0.0}},
  ),
  "standard scores of parts of a group": (
    SAMPLE | {"objective.standardise": True, "rollouts_per_prompt": 4, "micro_batch": 2},
    "micro_batch",
    {"make it a multiple": {"micro_batch": 4}},
  ),
  "a shuffled teacher that nobody asks": (
    SAMPLE | {"objective.kind": "suppress", "objective.shuffle_teacher": True},
    "objective.shuffle_teacher",
    {"": {"objective.shuffle_teacher": False}},
  ),
  "a surrogate of nothing": (
    {"surrogate.kind": "drpo"},
    "surrogate.kind",
    {
      "mixture.reward above 0": {"mixture.reward": 1.0, "rollouts_per_prompt": 2},
      "objective.support=sampled": {"objective.support": "sampled"},
    },
  ),
  "a surrogate of what is differentiated": (
    SAMPLE | {"surrogate.kind": "drpo", "objective.estimator": "k2", "mixture.reward": 1.0, "rollouts_per_prompt": 2},
    "objective.estimator",
    {"a surrogate takes 'k1'": {"objective.estimator": "k1"}},
  ),
  "a surrogate of cut sampling": (
    {"surrogate.kind": "drpo", "mixture.reward": 1.0, "rollouts_per_prompt": 2, "sampling.top_p": 0.9},
    "surrogate.kind",
    {
      "sampling.top_p=1": {"sampling.top_p": 1.0},
      "surrogate.kind=importance": {"surrogate.kind": "importance", "importance.kind": "none"},
    },
  ),
  "importance beside a surrogate": (
    {
      "surrogate.kind": "drpo",
      "mixture.reward": 1.0,
      "mixture.divergence": 0.0,
      "rollouts_per_prompt": 2,
      "importance.kind": "masked",
    },
    "importance.kind",
    {"set it to 'none'": {"importance.kind": "none"}},
  ),
  "k1_direct": (
    SAMPLE | {"objective.estimator": "k1_direct"},
    "objective.estimator",
    {
      "expected gradient is zero whatever the teacher says; use 'k1'": {"objective.estimator": "k1"},
      "or 'k2'": {"objective.estimator": "k2"},
    },
  ),
  "k3 for reverse_kl": (
    SAMPLE | {"objective.estimator": "k3"},
    "objective.estimator",
    {
      "use 'k1'": {"objective.estimator": "k1"},
      "or 'k2'": {"objective.estimator": "k2"},
      "is that of forward_kl": {"objective.kind": "forward_kl"},
    },
  ),
  "k1 for forward_kl": (
    FORWARD | {"objective.estimator": "k1"},
    "objective.estimator",
    {"use 'k3'": {"objective.estimator": "k3"}, "is that of reverse_kl": {"objective.kind": "reverse_kl"}},
  ),
  "k2 for forward_kl": (
    FORWARD | {"objective.estimator": "k2"},
    "objective.estimator",
    {"use 'k3'": {"objective.estimator": "k3"}, "is that of reverse_kl": {"objective.kind": "reverse_kl"}},
  ),
  "unknown estimator": (
    SAMPLE | {"objective.estimator": "k4"},
    "objective.estimator",
    {"'auto'": {"objective.estimator": "auto"}, "'k1'": {"objective.estimator": "k1"}},
  ),
  "sampled jsd": (
    SAMPLE | {"objective.kind": "jsd"},
    "objective.support",
    {
      "reverse_kl": {"objective.kind": "reverse_kl"},
      "or forward_kl": {"objective.kind": "forward_kl"},
      "more than the drawn token": {"objective.support": "student_topk"},
    },
  ),
  "sampled mixture": (
    SAMPLE | {"objective.kind": "mixture"},
    "objective.support",
    {"more than the drawn token": {"objective.support": "full"}},
  ),
  "two temperatures": (
    SAMPLE | {"sampling.temperature": 0.7},
    "objective.student_temperature",
    {
      "sampling.temperature 0.7": {"objective.student_temperature": 0.7},
      "make the two equal": {"sampling.temperature": 1.0},
      "another support": {"objective.support": "full"},
    },
  ),
  "sampled entry_clip": (
    SAMPLE | {"objective.entry_clip": 0.05},
    "objective.entry_clip",
    {"use token_clip": {"objective.entry_clip": 0.0, "objective.token_clip": 0.05}},
  ),
  "estimator without sampled": (
    {"objective.estimator": "k1"},
    "objective.estimator",
    {"needs 'sampled'": {"objective.support": "sampled"}},
  ),
  "sampled, top_p": (
    SAMPLE | {"sampling.top_p": 0.9},
    "objective.support",
    {"sampling.top_p=1": {"sampling.top_p": 1.0}},
  ),
  "certain on both sides": (
    {"objective.support": "teacher_topk", "objective.tail": "renormalise", "objective.k": 1},
    "objective.k",
    {"raise it": {"objective.k": 2}, "tail 'bucket'": {"objective.tail": "bucket"}},
  ),
  "segment beyond the horizon": (
    {"weights.kind": "segment", "weights.tokens": 5, "weights.start": OPD.horizon.max},
    "weights.start",
    {"lower it": {"weights.start": OPD.horizon.max - 5}},
  ),
  "masked at one": (
    REUSE | {"importance.kind": "masked", "importance.cap": 1.0},
    "importance.cap",
    {"raise it": {"importance.cap": 2.0}},
  ),
  "cap that is no number": (REUSE | {"importance.cap": float("nan")}, "importance.cap", {}),
  "discount without sampled": (
    {"objective.discount": 0.5},
    "objective.discount",
    {"support 'sampled' of reverse_kl with estimator 'k1'": SAMPLE | {"objective.estimator": "k1"}},
  ),
  "discount with k2": (
    SAMPLE | {"objective.discount": 0.5, "objective.estimator": "k2"},
    "objective.discount",
    {"estimator 'k1'": {"objective.estimator": "k1"}},
  ),
  "discount with the forward KL": (FORWARD | {"objective.discount": 0.5}, "objective.discount", {}),
  "jsd beta 0": (
    {"objective.kind": "jsd", "objective.beta": 0.0},
    "objective.beta",
    {"set objective.normalised=True": {"objective.normalised": True}},
  ),
  "jsd beta 1": (
    {"objective.kind": "jsd", "objective.beta": 1.0},
    "objective.beta",
    {"set objective.normalised=True": {"objective.normalised": True}},
  ),
  "reweight teacher_topk": (
    {"objective.tail": "reweight", "objective.support": "teacher_topk"},
    "objective.tail",
    {"use 'bucket'": {"objective.tail": "bucket"}, "over student_topk": {"objective.support": "student_topk"}},
  ),
  "reweight forward_kl": (
    {"objective.tail": "reweight", "objective.support": "student_topk", "objective.kind": "forward_kl"},
    "objective.tail",
    {"use 'bucket'": {"objective.tail": "bucket"}, "for reverse_kl": {"objective.kind": "reverse_kl"}},
  ),
  "reweight entry_clip": (
    {"objective.tail": "reweight", "objective.support": "student_topk", "objective.entry_clip": 0.05},
    "objective.entry_clip",
    {
      "use 'bucket'": {"objective.tail": "bucket"},
      "or 'renormalise'": {"objective.tail": "renormalise"},
    },
  ),
  **{
    f"vocab_chunk {support}": (
      {"objective.support": support, "objective.vocab_chunk": 64},
      "objective.vocab_chunk",
      {"leave it at 0": {"objective.vocab_chunk": 0}},
    )
    for support in ("student_topk", "teacher_topk", "both_topk")
  },
  **{
    f"{kind} without tokens": (
      {"weights.kind": kind},
      "weights.tokens",
      {"at least 1": {"weights.tokens": 1}},
    )
    for kind in ("first", "last", "segment", "random")
  },
  "reused, top_p": (
    REUSE | {"sampling.top_p": 0.9},
    "importance.kind",
    {"sampling.top_p=1": {"sampling.top_p": 1.0}, "importance.kind=none": {"importance.kind": "none"}},
  ),
  "masked, top_k": (
    {"importance.kind": "masked", "sampling.top_k": 20},
    "importance.kind",
    {"sampling.top_k=0": {"sampling.top_k": 0}, "importance.kind=none": {"importance.kind": "none"}},
  ),
  "cap": (REUSE | {"importance.cap": 0.5}, "importance.cap", {"at least 1": {"importance.cap": 1.0}}),
  "nothing in the mixture": (
    {"mixture.divergence": 0.0, "mixture.initial": 1.0},
    "mixture",
    {
      "divergence or reward above 0": {"mixture.divergence": 0.1},
      "reward above 0": {"mixture.reward": 1.0, "rollouts_per_prompt": 2},
    },
  ),
  "all zero": ({"mixture.divergence": 0.0}, "mixture", {"above 0": {"mixture.divergence": 1.0}}),
  "a negative coefficient": ({"mixture.initial": -0.1}, "mixture", {"0 or more": {"mixture.initial": 0.0}}),
  "reward with one rollout": (
    {"mixture.reward": 1.0},
    "mixture.reward",
    {"rollouts_per_prompt to 2": {"rollouts_per_prompt": 2}},
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_key_and_a_remedy_that_works(name):
  wrong, key, remedies = REFUSED[name]
  c = config.override(OPD, wrong)
  with pytest.raises(InputError, match=rf"^config\.{key.replace('.', '[.]')} .*\.$") as refusal:
    losses.check(c)
  for piece, remedy in remedies.items():
    assert piece in str(refusal.value)
    checks.check(config.override(c, remedy))


@pytest.mark.parametrize(
  "allowed",
  [
    {},
    SAMPLE,
    FORWARD | {"objective.estimator": "k3"},
    SAMPLE | {"objective.estimator": "k2"},
    SAMPLE | {"objective.discount": 1.0, "sampling.temperature": 0.7, "objective.student_temperature": 0.7},
    {"sampling.temperature": 0.7},
    {"objective.kind": "jsd"},
    {"objective.kind": "mixture", "objective.beta": 0.0},
    {"objective.tail": "reweight", "objective.support": "student_topk"},
    {"objective.vocab_chunk": 64},
    {"sampling.top_p": 0.9},
    REUSE | {"sampling.top_p": 0.9, "importance.kind": "none"},
    {"importance.cap": 0.5},
    {"weights.kind": "linear"},
    {"mixture.divergence": 0.0, "mixture.reward": 1.0, "rollouts_per_prompt": 2},
  ],
  ids=str,
)
def test_sensible_combinations_are_not_refused(allowed):
  checks.check(config.override(OPD, allowed))


def test_every_key_reaches_the_loss():
  """One key changed, one field changed; nothing else in the loss moves."""

  def flat(c):
    loss = losses.from_config(c, vocab=50)
    parts = {"": loss, "objective.": loss.objective, "weights.": loss.weights}
    return {
      prefix + field.name: getattr(part, field.name)
      for prefix, part in parts.items()
      for field in dataclasses.fields(part)
      if prefix + field.name not in ("objective", "weights")
    }

  default = flat(OPD)
  assert default["objective.vocab"] == 50
  for key, value, changed in (
    ("objective.kind", "jsd", {"objective.kind": "jsd"}),
    ("objective.kind", "forward_kl", {"objective.kind": "forward_kl", "estimator": "k3"}),
    ("objective.support", "sampled", {"objective.support": "sampled"}),
    ("objective.k", 3, {"objective.k": 3}),
    ("objective.tail", "renormalise", {"objective.tail": "renormalise"}),
    ("objective.beta", 0.25, {"objective.beta": 0.25}),
    ("objective.normalised", True, {"objective.normalised": True}),
    ("objective.student_temperature", 0.6, {"objective.student_temperature": 0.6}),
    ("objective.teacher_temperature", 0.7, {"objective.teacher_temperature": 0.7}),
    ("sampling.temperature", 0.8, {"objective.sampling_temperature": 0.8}),
    ("objective.entry_clip", 0.05, {"objective.entry_clip": 0.05}),
    ("objective.token_clip", 5.0, {"token_clip": 5.0}),
    ("objective.estimator", "k2", {"estimator": "k2"}),
    ("objective.discount", 0.9, {"discount": 0.9}),
    ("objective.normaliser", "constant", {"normaliser": "constant"}),
    ("objective.constant", 7, {"constant": 7}),
    ("objective.chunk", 32, {"objective.chunk": 32}),
    ("objective.vocab_chunk", 64, {"objective.vocab_chunk": 64, "objective.overlap_k": 0}),
    ("log.overlap_k", 3, {"objective.overlap_k": 3}),
    ("horizon.max", 99, {"constant": 99, "weights.horizon": 99}),
    ("weights.kind", "segment", {"weights.kind": "segment"}),
    ("weights.tokens", 4, {"weights.tokens": 4}),
    ("weights.start", 2, {"weights.start": 2}),
    ("weights.end", 0.5, {"weights.end": 0.5}),
    ("weights.gamma", 0.75, {"weights.gamma": 0.75}),
    ("weights.mean_one", True, {"weights.mean_one": True}),
    ("importance.kind", "masked", {"importance": "masked"}),
    ("updates_per_rollout", 2, {"importance": "truncated"}),
    ("importance.level", "prefix", {"level": "prefix"}),
    ("importance.cap", 3.0, {"cap": 3.0}),
    ("weights.fraction", 0.4, {"weights.fraction": 0.4}),
    ("weights.scope", "batch", {"weights.scope": "batch"}),
    ("objective.future", "mean", {"future": "mean"}),
    ("objective.standardise", True, {"standardise": True}),
    ("objective.advantage", -1.0, {"suppressing": (-1.0, 0.0)}),
    ("objective.entropy_advantage", -0.5, {"suppressing": (-0.5, -0.5)}),
    ("rollouts_per_prompt", 4, {"n": 4}),
    ("mini_batches", 2, {"importance": "truncated"}),
    ("surrogate.divergence", "topk_kl", {"objective.topk_distance": "topk_kl"}),
    ("mixture.divergence", 0.5, {"divergence": 0.5}),
    ("mixture.reward", 0.5, {"reward": 0.5}),
    ("mixture.initial", 0.5, {"reference_kl": 0.5}),
  ):
    now = flat(config.override(OPD, {key: value}))
    assert {name for name in now if now[name] != default[name]} == changed.keys(), key
    assert {name: now[name] for name in changed} == changed, key


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("threshold", 0.3),
    ("clip_low", 0.1),
    ("clip_high", 0.28),
    ("dual_clip", 3.0),
    ("cap", 5.0),
    ("divergence", "kl"),
    ("k", 7),
    ("mask_threshold", 0.05),
    ("advantage_scale", False),
  ],
)
def test_every_key_reaches_the_surrogate(key, value):
  made = losses.surrogate(config.override(REWARDED, {"surrogate.kind": "dppo", f"surrogate.{key}": value}))
  assert made == dataclasses.replace(Surrogate("dppo"), **{key: value})


def test_a_surrogate_takes_the_place_of_importance_weights():
  alone = losses.from_config(config.override(REWARDED, {"surrogate.kind": "drpo", "mini_batches": 2}), 50)
  assert (alone.surrogate, alone.importance) == (Surrogate("drpo"), "none")
  beside = {"surrogate.kind": "drpo", "mini_batches": 2, "mixture.divergence": 1.0}
  loss = losses.from_config(config.override(REWARDED, beside), 50)
  assert (loss.surrogate, loss.importance) == (Surrogate("drpo"), "truncated"), "the divergence still needs them"
  assert losses.from_config(config.override(REWARDED, {"mini_batches": 2}), 50).surrogate is None


def test_importance_is_automatic_where_a_rollout_is_used_twice():
  def kind(**keys):
    return losses.importance_kind(config.override(OPD, keys))

  assert kind() == "none"
  assert kind(**REUSE) == "truncated"
  assert kind(**REUSE, **{"importance.kind": "none"}) == "none"
  assert kind(**{"importance.kind": "masked"}) == "masked"


def test_the_estimator_follows_the_objective():
  def estimator(keys):
    return losses.estimator(config.override(OPD, keys))

  assert estimator(SAMPLE) == "k1"
  assert estimator(SAMPLE | {"objective.estimator": "k2"}) == "k2"
  assert estimator(FORWARD) == "k3"
