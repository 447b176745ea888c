"""Values of a config that cannot be meant, refused before anything is compiled or written."""

import importlib.util

from opd_jax.config import INITIAL, TASK, Config, get, teacher_names
from opd_jax.context import canonical
from opd_jax.errors import InputError
from opd_jax.horizon import schedule as horizon
from opd_jax.models import lora
from opd_jax.objectives import divergence, kl_estimators, loss, token_weights


def check(config: Config) -> None:
  """Refuses values that cannot be meant, before anything is compiled or written.

  The horizon and the data have checks of their own in horizon.py and data/.
  """

  def positive(*keys):
    for key in keys:
      if get(config, key) < 1:
        raise InputError(f"config.{key} is {get(config, key)}; it has to be at least 1.")

  def one_of(key, *allowed):
    if get(config, key) not in allowed:
      raise InputError(f"config.{key} is {get(config, key)!r}; it can be {', '.join(map(repr, allowed))}.")

  positive("steps", "batch", "rollouts_per_prompt", "updates_per_rollout", "data.max_prompt", "eval.prompts", "eval.k")
  positive(
    "buckets",
    "rollout.segments",
    "eval.batch",
    "checkpoint.keep",
    "log.every",
    "log.bins",
    "optimizer.max_skipped",
    "objective.k",
  )
  one_of("data.on_bad_line", "refuse", "skip", "truncate")
  one_of("objective.kind", *divergence.KINDS)
  one_of("objective.support", *divergence.SUPPORTS)
  one_of("objective.tail", *divergence.TAILS)
  one_of("objective.normaliser", *token_weights.NORMALISERS)
  one_of("weights.kind", *token_weights.KINDS)
  one_of("importance.kind", *kl_estimators.IMPORTANCE)
  one_of("importance.level", *kl_estimators.LEVELS)
  one_of("optimizer.kind", "adamw")
  one_of("remat", "none", "dots", "layer")
  one_of("teacher_precision", "compute", "int8")
  one_of("mesh.teacher", "none", "fsdp", "all")
  one_of("rollout.by", "student", "teacher", "data")
  one_of("context.kind", "same", "canonical")
  one_of("precision", "auto", "float32", "bfloat16")
  for key in (
    "eval.every",
    "eval.max_tokens",
    "checkpoint.every",
    "optimizer.warmup",
    "sampling.top_k",
    "rollout.segment",
    "objective.chunk",
    "objective.vocab_chunk",
    "objective.constant",
    "objective.entry_clip",
    "objective.token_clip",
    "weights.tokens",
    "weights.start",
    "weights.end",
    "weights.gamma",
    "optimizer.clip",
    "optimizer.weight_decay",
    "log.overlap_k",
    "log.samples",
    "lora.rank",
  ):
    if get(config, key) < 0:
      raise InputError(f"config.{key} is {get(config, key)}; it cannot be negative.")
  for key in ("optimizer.b1", "optimizer.b2"):
    if not 0 <= get(config, key) < 1:
      raise InputError(f"config.{key} is {get(config, key)}; it has to be at least 0 and below 1.")
  if config.teacher_precision == "int8" and not importlib.util.find_spec("qwix"):
    raise InputError(
      "config.teacher_precision is 'int8', but qwix is not installed; pip install qwix, or leave it 'compute'."
    )
  if config.data.widths and config.data.widths <= 1:
    raise InputError(
      f"config.data.widths is {config.data.widths}; it is a ratio above 1, such as 1.5, or 0 for one width."
    )
  for divisor in config.rollout.shrink:
    if not isinstance(divisor, int) or divisor < 2:
      raise InputError(f"config.rollout.shrink holds {divisor!r}; it holds whole numbers of 2 or more, such as (2, 4).")
  if config.log.wandb and not importlib.util.find_spec("wandb"):
    raise InputError(
      f"config.log.wandb is {config.log.wandb!r}, but wandb is not installed; pip install wandb, or leave it ''."
    )
  for name in config.allow_mismatch:
    if name not in ("tokenizer", "eos", "chat_template"):
      raise InputError(f"config.allow_mismatch names {name!r}; it can name 'tokenizer', 'eos' and 'chat_template'.")
  if config.sampling.temperature <= 0:
    raise InputError(
      f"config.sampling.temperature is {config.sampling.temperature}; a rollout is sampled, so it has to be above 0."
    )
  for key in ("objective.student_temperature", "objective.teacher_temperature"):
    if get(config, key) <= 0:
      raise InputError(f"config.{key} is {get(config, key)}; it has to be above 0.")
  for key in ("objective.beta", "objective.discount"):
    if not 0 <= get(config, key) <= 1:
      raise InputError(f"config.{key} is {get(config, key)}; it lies between 0 and 1.")
  if config.data.teacher_field and config.data.path.startswith(TASK):
    raise InputError(
      f"config.data.teacher_field is {config.data.teacher_field!r}, but {config.data.path} is a built-in task, "
      "whose problems name no "
      "teacher; give a JSONL file in config.data.path, or leave the field empty."
    )
  if config.data.teacher_field and config.teacher_weights:
    raise InputError(
      "config.teacher_weights mixes the teachers of every example and config.data.teacher_field chooses one; set only one "
      "of the two."
    )
  if config.context.kind == "canonical":
    canonical.check(config)
  elif config.recipe == "ccopd":
    raise InputError(f"config.context.kind is {config.context.kind!r}, and the recipe 'ccopd' needs 'canonical'.")
  _check_adapter(config)
  _check_speaker(config)
  loss.check(config)
  _check_chosen_horizon(config)
  if config.eval.temperature < 0:
    raise InputError(f"config.eval.temperature is {config.eval.temperature}; it can be 0 (greedy) or above.")
  if not 0 < config.sampling.top_p <= 1:
    raise InputError(f"config.sampling.top_p is {config.sampling.top_p}; it has to be above 0 and at most 1.")
  if not config.optimizer.lr > 0:
    raise InputError(f"config.optimizer.lr is {config.optimizer.lr}; it has to be above 0.")
  for k in config.eval.pass_at:
    if not isinstance(k, int):
      raise InputError(f"config.eval.pass_at holds {k!r}; it is a tuple of whole numbers, such as (1, 8).")
    if not 1 <= k <= config.eval.k:
      raise InputError(
        f"pass@{k} was asked for with {config.eval.k} sample(s) per prompt: raise config.eval.k to at least "
        f"{k}, or lower config.eval.pass_at."
      )
  rows = config.batch * config.rollouts_per_prompt
  if config.micro_batch and (config.micro_batch < 0 or rows % config.micro_batch):
    raise InputError(
      f"config.micro_batch is {config.micro_batch}; it has to divide the {rows} rows of a step (batch x "
      "rollouts_per_prompt)."
    )


def _check_speaker(config: Config) -> None:
  """Refuses what needs the student's own rollouts where another model or the data writes them."""
  if config.rollout.by == "student":
    return
  alone = {
    "mixture.reward": 0.0,
    "updates_per_rollout": 1,
    "rollout.ahead": False,
    "teachers": (),
    "importance.kind": ("auto", "none"),
  } | (
    {"teacher_offload": False, "teacher_precision": "compute"}
    if config.rollout.by == "teacher"
    else {"rollouts_per_prompt": 1}
  )
  for key, allowed in alone.items():
    if get(config, key) != allowed and not (key == "importance.kind" and get(config, key) in allowed):
      raise InputError(
        f"config.{key} is {get(config, key)!r}, which does not go with rollout.by={config.rollout.by!r}."
      )
  if config.horizon.kind not in ("full", "truncated", "progressive", "geometric"):
    raise InputError(
      f"config.horizon.kind is {config.horizon.kind!r}, and rollout.by={config.rollout.by!r} tells it nothing."
    )
  if config.rollout.by == "data" and not config.data.path.startswith(TASK) and not config.data.solution_field:
    raise InputError("config.rollout.by is 'data'; name the field with the responses in config.data.solution_field.")


def _check_adapter(config: Config) -> None:
  if not config.lora.rank and not config.lora.path:
    return
  if not config.lora.alpha > 0:
    raise InputError(f"config.lora.alpha is {config.lora.alpha}; it has to be above 0.")
  if not config.lora.path and (not config.lora.targets or set(config.lora.targets) - lora.INPUTS.keys()):
    raise InputError(f"config.lora.targets is {tuple(config.lora.targets)}; it holds some of {', '.join(lora.INPUTS)}.")
  names = teacher_names(config)
  if config.lora.path and (INITIAL in names or config.mixture.initial):
    raise InputError(
      "config.lora.path begins with an adapter that is trained already, and a frozen copy of it is not kept, so that the "
      "student before training cannot teach; export it with --merge, and give that directory as config.student."
    )
  if INITIAL in names and config.teacher_precision != "compute":
    raise InputError(
      f"config.teacher_precision is {config.teacher_precision!r}, and the teacher is the student's own base, "
      "which is as it is; "
      "leave it 'compute'."
    )
  if config.teacher_offload:
    raise InputError(
      "config.teacher_offload moves frozen models away between updates, and config.lora trains an adapter to one that "
      "speaks; leave it False."
    )


def _check_chosen_horizon(config: Config) -> None:
  """Refuses configs that hide from a rule what it chooses by; its own numbers are checked in adaptive.py.

  A disagreement by position is known by bin, so widths have to be edges of bins. A probe takes its gradient apart by
  position, so no token's part may depend on others.
  """
  kind, T = config.horizon.kind, config.horizon.max
  if (
    kind == "drift"
    and config.horizon.measure == "overlap"
    and (not config.log.overlap_k or config.objective.vocab_chunk)
  ):
    raise InputError(
      "config.horizon.measure is 'overlap', and the overlap is not read: set log.overlap_k above 0 and "
      "objective.vocab_chunk to 0, or take horizon.measure='gap' with a horizon.threshold in nats."
    )
  if kind in ("drift", "saturation", "look"):
    bins = min(config.log.bins, T)
    edges = {-(-b * T // bins) for b in range(bins + 1)}
    if off := [w for w in horizon.from_config(config.horizon).widths if w not in edges]:
      raise InputError(
        f"config.horizon.kind is {kind!r}, which sees a response in config.log.bins={bins} bins, and the width {off[0]} is no edge "
        f"of one; take horizon.start or horizon.widths from multiples of {T / bins:g} tokens, or change log.bins."
      )
  if kind == "agreement":
    local = {
      "weights.kind": "uniform",
      "objective.discount": 0.0,
      "mixture.reward": 0.0,
      "importance.kind": ("auto", "none"),
      "objective.normaliser": ("token", "constant"),
      "updates_per_rollout": 1,
      "rollout.ahead": False,
    }
    for key, allowed in local.items():
      if get(config, key) not in (allowed if isinstance(allowed, tuple) else (allowed,)):
        raise InputError(
          f"config.{key} is {get(config, key)!r}, with which a token's gradient depends on other tokens, and "
          "horizon.kind 'agreement' compares "
          "the gradients of shorter and longer rollouts; take another rule, or leave the key as it is by default."
        )
