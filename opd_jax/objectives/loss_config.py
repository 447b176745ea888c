"""The loss that a config describes, and which combinations of its keys make no sense.

It is what `config.objective`, `config.weights`, `config.importance`, `config.surrogate` and `config.mixture` say together.
"""

from opd_jax.errors import InputError
from opd_jax.objectives import kl_estimators
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.objectives.surrogates import IMPORTANCE, Surrogate
from opd_jax.objectives.token_weights import COUNTED, TokenWeighting


def estimator(config) -> str:
  """Return the estimator of the sampled support; "auto" is the first that belongs to the objective's kind."""
  if config.objective.estimator != "auto":
    return config.objective.estimator
  return kl_estimators.ESTIMATORS.get(config.objective.kind, ("k1",))[0]


def importance_kind(config) -> str:
  """Return the kind of importance weights: none where a surrogate, which has its own ratio, is all that would use them.

  "auto" is "truncated" where a rollout is used for more than one update or was begun before the last one.
  """
  if surrogate(config) and not (config.mixture.divergence and config.objective.support != "sampled"):
    return "none"
  if config.importance.kind == "auto":
    several = config.updates_per_rollout > 1 or config.mini_batches > 1
    return "truncated" if several or config.rollout.ahead else "none"
  return config.importance.kind


def surrogate(config) -> Surrogate | None:
  """Build the surrogate of what is a policy gradient; None where it has importance weights instead."""
  s = config.surrogate
  if s.kind == IMPORTANCE:
    return None
  return Surrogate(
    kind=s.kind,
    threshold=s.threshold,
    clip_low=s.clip_low,
    clip_high=s.clip_high,
    dual_clip=s.dual_clip,
    cap=s.cap,
    divergence=s.divergence,
    k=s.k,
    mask_threshold=s.mask_threshold,
    advantage_scale=s.advantage_scale,
  )


def policy_gradient(config) -> bool:
  """Tell whether the loss has a policy gradient: of a reward, or of the teacher's log-ratios as advantages."""
  of_teacher = config.objective.support == "sampled" and estimator(config) in ("k1", kl_estimators.SUPPRESS)
  return config.mixture.reward > 0 or (config.mixture.divergence > 0 and of_teacher)


def asks_teacher(config) -> bool:
  """Tell whether the loss compares the student with a teacher."""
  return config.mixture.divergence > 0 and config.objective.kind != kl_estimators.SUPPRESS


def from_config(config, vocab: int) -> Loss:
  """Build the loss of a run.

  Args:
    vocab: the number of ids that all models share.
  """
  o = config.objective
  return Loss(
    objective=Objective(
      vocab=vocab,
      kind=o.kind,
      support=o.support,
      k=o.k,
      tail=o.tail,
      beta=o.beta,
      normalised=o.normalised,
      student_temperature=o.student_temperature,
      teacher_temperature=o.teacher_temperature,
      sampling_temperature=config.sampling.temperature,
      entry_clip=o.entry_clip,
      overlap_k=0 if o.vocab_chunk else config.log.overlap_k,
      chunk=o.chunk,
      vocab_chunk=o.vocab_chunk,
      topk_distance=config.surrogate.divergence,
    ),
    weights=TokenWeighting(
      kind=config.weights.kind,
      tokens=config.weights.tokens,
      fraction=config.weights.fraction,
      scope=config.weights.scope,
      start=config.weights.start,
      end=config.weights.end,
      gamma=config.weights.gamma,
      mean_one=config.weights.mean_one,
      horizon=config.horizon.max,
    ),
    estimator=estimator(config),
    discount=o.discount,
    future=o.future,
    standardise=o.standardise,
    n=config.rollouts_per_prompt,
    suppressing=(o.advantage, o.entropy_advantage),
    token_clip=o.token_clip,
    importance=importance_kind(config),
    level=config.importance.level,
    cap=config.importance.cap,
    normaliser=o.normaliser,
    constant=o.constant or float(config.horizon.max),
    divergence=config.mixture.divergence,
    reward=config.mixture.reward,
    reference_kl=config.mixture.initial,
    surrogate=surrogate(config) if policy_gradient(config) else None,
  )


def check(config) -> None:
  """Refuse combinations of config.objective, weights, importance, surrogate and mixture that make no sense.

  Raises:
    InputError: naming the key, and what to set instead.
  """
  o, w = config.objective, config.weights
  sampled = o.support == "sampled"

  def refuse(key, why):
    raise InputError(f"config.{key} {why}.")

  if sampled:
    fitting = kl_estimators.ESTIMATORS.get(o.kind, ())
    if o.estimator == "k1_direct":
      refuse(
        "objective.estimator",
        "is 'k1_direct', the log-ratio differentiated as it stands: its expected gradient is zero whatever the teacher "
        "says; use 'k1', which carries the log-ratio as a stop-gradient advantage, or 'k2'",
      )
    if not fitting:
      refuse(
        "objective.support",
        f"is 'sampled', which estimates reverse_kl, proximal or forward_kl, not {o.kind!r}; choose one of them, or a support "
        "with more than the drawn token",
      )
    if o.estimator not in ("auto", *fitting):
      other = next((kind for kind, names in kl_estimators.ESTIMATORS.items() if o.estimator in names), None)
      known = ", ".join(repr(e) for names in kl_estimators.ESTIMATORS.values() for e in names)
      belongs = f"its expected gradient is that of {other}, not of {o.kind}" if other else f"it can be 'auto', {known}"
      refuse(
        "objective.estimator", f"is {o.estimator!r}: {belongs}; for {o.kind} use {' or '.join(map(repr, fitting))}"
      )
    if (o.estimator == "nll") != (config.rollout.by != "student"):
      refuse(
        "objective.estimator",
        f"is {o.estimator!r} and rollout.by {config.rollout.by!r}: 'nll' learns what others have said, and has no "
        "gradient in expectation on the student's own words; the other estimators are for these",
      )
    if o.student_temperature != config.sampling.temperature:
      refuse(
        "objective.student_temperature",
        f"is {o.student_temperature} and sampling.temperature {config.sampling.temperature}: the drawn token estimates "
        "a divergence of the distribution that it was drawn from; make the two equal, or use another support",
      )
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
      refuse(
        "objective.support",
        "is 'sampled', which estimates a divergence of the distribution that tokens are drawn from, and top_p or top_k "
        "cut that one: set sampling.top_p=1 and sampling.top_k=0, or use another support",
      )
    if o.entry_clip:
      refuse("objective.entry_clip", "is for entries of the vocabulary, and a drawn token has none; use token_clip")
  elif o.estimator != "auto":
    refuse("objective.estimator", f"is {o.estimator!r}, but objective.support is {o.support!r}; it needs 'sampled'")
  elif config.rollout.by != "student":
    refuse(
      "rollout.by",
      f"is {config.rollout.by!r}, so that nothing is on-policy; set objective.support=sampled, "
      "objective.kind=forward_kl and objective.estimator=nll, which learns what is said there",
    )
  if not sampled and o.kind == kl_estimators.SUPPRESS:
    refuse("objective.kind", "is 'suppress', which gives drawn tokens an advantage; set objective.support=sampled")
  if o.discount and not (sampled and estimator(config) == "k1"):
    refuse(
      "objective.discount",
      f"is {o.discount}, which only a policy gradient has: support 'sampled' of reverse_kl with estimator 'k1'; "
      "otherwise set it to 0",
    )
  if o.kind == "jsd" and not o.normalised and o.beta in (0, 1):
    refuse(
      "objective.beta",
      f"is {o.beta}, where the JSD and its gradient are zero for every pair; set objective.normalised=True, with which "
      "it is the forward KL at 0 and the reverse KL at 1",
    )
  if o.tail == "reweight" and o.support.endswith("topk"):
    if (o.kind, o.support) != ("reverse_kl", "student_topk"):
      refuse("objective.tail", "is 'reweight', which is defined for reverse_kl over student_topk only; use 'bucket'")
    if o.entry_clip:
      refuse("objective.entry_clip", "does not go with objective.tail 'reweight'; use 'bucket' or 'renormalise'")
  if o.k < 2 and o.tail == "renormalise" and o.support in ("student_topk", "teacher_topk"):
    refuse(
      "objective.k",
      "is 1 with tail 'renormalise': both sides become certain, and nothing is left of the teacher; "
      "raise it, or use tail 'bucket'",
    )
  if o.vocab_chunk and o.support.endswith("topk"):
    refuse("objective.vocab_chunk", "does not go with a top-k support; leave it at 0 and lower objective.chunk instead")
  for key, default in (("future", "discounted"), ("standardise", False)):
    if o[key] != default and not (sampled and estimator(config) == "k1"):
      refuse(
        f"objective.{key}", f"is {o[key]!r}, which only a policy gradient has: support 'sampled' with estimator 'k1'"
      )
  if o.future == "mean" and o.discount:
    refuse("objective.discount", f"is {o.discount}, and objective.future 'mean' takes its place; set it to 0")
  rows = config.micro_batch or config.rollouts_per_prompt
  if o.standardise and rows % config.rollouts_per_prompt:
    refuse(
      "micro_batch",
      f"is {rows}, and objective.standardise needs all rollouts of a prompt in a slice; make it a multiple",
    )
  if o.shuffle_teacher and not asks_teacher(config):
    refuse("objective.shuffle_teacher", "is True, and the loss asks no teacher")
  _check_surrogate(config, refuse)
  if w.kind in COUNTED and w.tokens < 1:
    refuse("weights.tokens", f"is {w.tokens}; weights.kind {w.kind!r} needs at least 1")
  if w.kind == "segment" and w.start >= config.horizon.max:
    refuse(
      "weights.start",
      f"is {w.start}, which no response of at most horizon.max={config.horizon.max} tokens reaches; lower it",
    )
  if importance_kind(config) != "none":
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
      refuse(
        "importance.kind",
        "compares the student's distribution with the one sampled from, and top_p or top_k cut the latter: set "
        "sampling.top_p=1 and sampling.top_k=0, or importance.kind=none",
      )
    if not config.importance.cap >= 1:
      refuse("importance.cap", f"is {config.importance.cap}; it has to be at least 1")
    if config.importance.kind == "masked" and config.importance.cap == 1:
      refuse("importance.cap", "is 1, and 'masked' would drop every token whose ratio is not exactly 1; raise it")
  m = config.mixture
  if min(m.divergence, m.reward, m.initial) < 0 or not (m.divergence or m.reward):
    refuse("mixture", "needs coefficients of 0 or more, and divergence or reward above 0")
  if not m.divergence and w.kind != "uniform":
    refuse(
      "weights.kind",
      f"is {w.kind!r}, which weighs the tokens of the divergence, and mixture.divergence is 0; leave it 'uniform'",
    )
  if m.reward_std and config.advantage.kind != "auto":
    refuse(
      "mixture.reward_std",
      f"is True, and config.advantage.kind is {config.advantage.kind!r}, which takes its place; set one of the two",
    )
  if m.reward and config.rollouts_per_prompt < 2:
    refuse(
      "mixture.reward",
      f"is {m.reward} with one rollout per prompt: a reward is judged against the other rollouts of its prompt; set "
      "rollouts_per_prompt to 2 or more",
    )


def _check_surrogate(config, refuse) -> None:
  s = config.surrogate
  if s.kind == IMPORTANCE:
    return
  if not policy_gradient(config):
    refuse(
      "surrogate.kind",
      f"is {s.kind!r}, and the loss has no policy gradient: set mixture.reward above 0, or objective.support=sampled with k1",
    )
  if (
    config.objective.support == "sampled" and config.mixture.divergence and estimator(config) not in ("k1", "suppress")
  ):
    refuse(
      "objective.estimator", f"is {estimator(config)!r}, which is differentiated as it stands; a surrogate takes 'k1'"
    )
  if config.sampling.top_p < 1 or config.sampling.top_k > 0:
    refuse(
      "surrogate.kind",
      f"is {s.kind!r}, which compares a token's probability with the one that it was drawn with, and top_p or top_k cut the "
      "latter: set sampling.top_p=1 and sampling.top_k=0, or surrogate.kind=importance with importance.kind=none",
    )
  if s.kind == "truncated" and not s.cap:
    refuse("surrogate.cap", "is 0, and surrogate.kind 'truncated' cuts the ratio there; set it above 0, or take 'is'")
  if config.importance.kind not in ("auto", "none") and importance_kind(config) == "none":
    refuse("importance.kind", f"is {config.importance.kind!r}, and a surrogate has its own ratio; set it to 'none'")
