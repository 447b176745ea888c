"""Values of a config that cannot be meant, refused before anything is compiled or written, and those that are worth a warning."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import jax

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.config import INITIAL, MAPPINGS, TASK, Config, get, teacher_names
from opd_jax.data import rendering
from opd_jax.data.problems import Problems
from opd_jax.errors import InputError
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.horizon import schedule as horizon
from opd_jax.models import lora, model_sharding
from opd_jax.models.spec import ModelSpec
from opd_jax.objectives import loss_config
from opd_jax.rewards.named import reward_verifiers
from opd_jax.rewards.pool import VerifierPool
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.training import specs, subnetwork

COUNTED = 2**31  # tokens


def check(config: Config) -> None:
  """Refuses values that cannot be meant, before anything is compiled or written.

  What a key may be by itself is in the table of keys, config/keys.py; here is how keys go together. The horizon and the data
  have checks of their own in horizon/ and data/.
  """
  configs.check(config)
  _check_sizes(config)
  _check_schedule(config)
  if config.teacher_precision == "int8" and not importlib.util.find_spec("qwix"):
    raise InputError(
      "config.teacher_precision is 'int8', but qwix is not installed; pip install qwix, or leave it 'compute'."
    )
  if config.log.wandb and not importlib.util.find_spec("wandb"):
    raise InputError(
      f"config.log.wandb is {config.log.wandb!r}, but wandb is not installed; pip install wandb, or leave it ''."
    )
  if config.log.mlflow and not importlib.util.find_spec("mlflow"):
    raise InputError(
      f"config.log.mlflow is {config.log.mlflow!r}, but mlflow is not installed; pip install mlflow-skinny, or leave it ''."
    )
  if config.data.weights and len(config.data.weights) != len(config.data.paths):
    raise InputError(
      f"config.data.weights has {len(config.data.weights)} numbers for {len(config.data.paths)} of config.data.paths; give one "
      "for each, or ()."
    )
  paths = configs.data_paths(config)
  if twice := [path for i, path in enumerate(paths) if path in paths[:i]]:
    raise InputError(f"config.data.paths names {twice[0]!r} twice; name each source once, and give it a weight.")
  tasks = [path for path in paths if path.startswith(TASK)]
  if config.data.teacher_field and tasks:
    raise InputError(
      f"config.data.teacher_field is {config.data.teacher_field!r}, but {tasks[0]} is a built-in task, "
      "whose problems name no "
      "teacher; give a file in config.data.path, or leave the field empty."
    )
  if config.data.teacher_field and config.teacher_weights:
    raise InputError(
      "config.teacher_weights mixes the teachers of every example and config.data.teacher_field chooses one; set only one "
      "of the two."
    )
  for key in MAPPINGS:
    rendering.check_args(f"config.{key}", get(config, key).to_dict())
  if config.data.image_field and config.context.kind not in ("same", "crop"):
    raise InputError(
      f"config.context.kind is {config.context.kind!r}, which shows text alone, and config.data.image_field is {config.data.image_field!r}; take "
      "another context, such as crop of the recipe 'self_distillation', or leave the field empty."
    )
  if config.vision.train and not config.data.image_field:
    raise InputError(
      "config.vision.train is True, and the data have no images for the tower to see; set config.data.image_field, or vision.train=False."
    )
  if config.data.box_field and not config.data.image_field:
    raise InputError(
      f"config.data.box_field is {config.data.box_field!r}, and no field has images; set config.data.image_field."
    )
  if config.context.kind == "canonical" and not configs.has(config, "context.turn_tokens"):
    raise InputError(
      f"config.context.kind is 'canonical', and the recipe {config.recipe!r} has none of its keys; give --config.recipe=ccopd."
    )
  if config.context.kind != "canonical" and config.recipe == "ccopd":
    raise InputError(f"config.context.kind is {config.context.kind!r}, and the recipe 'ccopd' needs 'canonical'.")
  _check_adapter(config)
  subnetwork.check(config)
  _check_speaker(config)
  loss_config.check(config)
  _check_reward(config)
  _check_chosen_horizon(config)
  for k in config.eval.pass_at:
    if k > config.eval.k:
      raise InputError(
        f"pass@{k} was asked for with {config.eval.k} sample(s) per prompt: raise config.eval.k to at least "
        f"{k}, or lower config.eval.pass_at."
      )
  if config.batch % config.mini_batches:
    raise InputError(
      f"config.mini_batches is {config.mini_batches}; it has to divide the {config.batch} prompts of a step (batch)."
    )
  rows = config.batch // config.mini_batches * config.rollouts_per_prompt
  if config.micro_batch and rows % config.micro_batch:
    raise InputError(
      f"config.micro_batch is {config.micro_batch}; it has to divide the {rows} rows of an update (batch x "
      "rollouts_per_prompt / mini_batches)."
    )
  _check_teacher(config)
  _check_teacher_update(config)


def _check_teacher_update(config: Config) -> None:
  """Refuses a teacher that moves and is not the student's own, or that something else needs as it was."""
  kind = config.teacher_update.kind
  if kind == "frozen":
    return
  if teacher_names(config) != (INITIAL,):
    raise InputError(
      f"config.teacher_update.kind is {kind!r}, which moves the student's own earlier self, and the teacher is "
      f"{' and '.join(teacher_names(config)) or 'none'}; set config.teacher=initial, or leave teacher_update.kind 'frozen'."
    )
  if config.context.kind == "same" and config.mixture.reward == 0 and config.objective.teacher_temperature == 1:
    raise InputError(
      f"config.teacher_update.kind is {kind!r}, and student and teacher are one model and read the same prompts, so that nothing is ever "
      "learned; use a recipe that gives the teacher a context of its own, or add a reward (mixture.reward)."
    )
  stay = {"rollout.by": "student", "teacher_precision": "compute", "teacher_offload": False}
  for key, allowed in stay.items():
    if get(config, key) != allowed and not (key == "teacher_offload" and kind == "mix"):
      raise InputError(
        f"config.{key} is {get(config, key)!r}, which needs a teacher that stays as it is, and config.teacher_update.kind is {kind!r}; "
        f"leave config.{key} {allowed!r}."
      )


def _check_teacher(config: Config) -> None:
  """Refuses what compares with a teacher where there is none."""
  if teacher_names(config):
    return
  needs = {
    "mixture.divergence": loss_config.asks_teacher(config),
    "rollout.by": config.rollout.by == "teacher",
    "horizon.kind": config.horizon.kind in ("agreement", "drift", "saturation", "look"),
    "weights.kind": config.weights.kind in ("gap", "teacher_entropy"),
    "context.kind": config.context.kind != "same",
  }
  for key, needed in needs.items():
    if needed:
      raise InputError(
        f"config.teacher is '', and config.{key} is {get(config, key)!r}, which needs one; name a teacher, or set mixture.divergence=0 "
        "or objective.kind=suppress, and no key that compares with one."
      )


def _check_sizes(config: Config) -> None:
  """Refuses steps and evaluations of more tokens than are counted on the devices, in 32 bits."""
  step = {key: get(config, key) for key in ("batch", "rollouts_per_prompt", "horizon.max")}
  evaluation = {
    "eval.batch": min(config.eval.batch, config.eval.prompts),
    "eval.k": config.eval.k,
    "eval.max_tokens": config.eval.max_tokens or configs.response_len(config),
  }
  for sizes in (step, evaluation) if config.eval.every else (step,):
    if (tokens := math.prod(sizes.values())) >= COUNTED:
      product = " x ".join(f"{key}={number}" for key, number in sizes.items())
      raise InputError(
        f"config.{product} is {tokens:,} tokens at once, and fewer than {COUNTED:,} can be counted; lower one of them."
      )


def _check_schedule(config: Config) -> None:
  """Refuses a learning rate that falls over no updates, or that is 0 before the run ends, and keys of a fall that there is none of."""
  c, steps, parts = config.optimizer, config.steps, config.diffusion.parts if "diffusion" in config else 1
  if "codistillation" in config:  # those of the student that has more of them
    rounds, rest = divmod(steps, 2 * config.codistillation.phase_steps)
    steps = rounds * config.codistillation.phase_steps + min(rest, config.codistillation.phase_steps)
  updates = steps * config.updates_per_rollout * config.mini_batches * parts
  if c.schedule == "constant":
    for key in ("decay_updates", "min_lr_ratio"):
      if c[key]:
        raise InputError(
          f"config.optimizer.{key} is {c[key]}, which does nothing with optimizer.schedule='constant'; choose linear or cosine, or leave it 0."
        )
    return
  if not c.decay_updates:
    raise InputError(
      f"config.optimizer.schedule is {c.schedule!r}, and optimizer.decay_updates says over how many updates: this run makes {updates}, of which "
      f"{min(c.warmup, updates)} are the warm-up's, so that optimizer.decay_updates={max(1, updates - c.warmup)} falls to its end."
    )
  if not c.min_lr_ratio and updates > c.warmup + c.decay_updates:
    raise InputError(
      f"config.optimizer.decay_updates is {c.decay_updates}, behind which the learning rate is 0, and this run makes {updates} updates; raise it to "
      f"{updates - c.warmup}, or set optimizer.min_lr_ratio."
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
  of_files = not all(path.startswith(TASK) for path in configs.data_paths(config))
  if config.rollout.by == "data" and of_files and not config.data.solution_field:
    raise InputError("config.rollout.by is 'data'; name the field with the responses in config.data.solution_field.")


def _check_adapter(config: Config) -> None:
  if not config.lora.rank and not config.lora.path:
    return
  if not config.lora.path and not config.lora.targets:
    raise InputError(f"config.lora.targets is (); it holds some of {', '.join(lora.INPUTS)}.")
  names = teacher_names(config)
  initial_teaches = INITIAL in names and config.teacher_update.kind in ("frozen", "mix")
  if config.lora.path and (initial_teaches or config.mixture.initial):
    raise InputError(
      "config.lora.path begins with an adapter that is trained already, and a frozen copy of it is not kept, so that the "
      "student before training cannot teach; export it with --merge, and give that directory as config.student, or let the teacher "
      "follow the student with config.teacher_update.kind=ema."
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


def _check_reward(config: Config) -> None:
  names, weights, c = config.reward.verifiers, config.reward.weights, config.reward
  if config.data.answer_pattern and "regex" not in (config.data.verifier, *names):
    raise InputError(
      "config.data.answer_pattern is set, and no verifier reads it; set config.data.verifier='regex', or leave it empty."
    )
  if weights and len(weights) != max(1, len(names)):
    raise InputError(
      f"config.reward.weights has {len(weights)} numbers for {max(1, len(names))} verifier(s); give one for each, or ()."
    )
  if len(set(names)) < len(names):
    raise InputError(f"config.reward.verifiers is {names}, which names one twice; name each once, with its weight.")
  shortest = horizon.from_config(config.horizon).limit(0) if c.overlong == "soft" else 0
  if c.overlong == "soft" and not 0 < c.overlong_buffer <= shortest:
    raise InputError(
      f"config.reward.overlong is 'soft' with overlong_buffer={c.overlong_buffer}; give it between 1 and the first horizon of "
      f"{shortest} tokens, a fifth of the full one in DAPO."
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
      "objective.future": "discounted",
      "objective.standardise": False,
      "objective.shuffle_teacher": False,
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


def warnings(
  config: Config,
  mesh: jax.sharding.Mesh,
  sampling: Sampling,
  models: Sequence[ModelSpec],
  train: Problems,
  evaluation: EvaluationInputs | None,
) -> tuple[str, ...]:
  """Lists what is allowed but worth a warning before the run.

  Args:
    models: the student, and then its teachers.
  """
  student, *teachers = models
  out = []
  if config.objective.student_temperature != sampling.temperature or sampling.top_p < 1 or sampling.top_k > 0:
    out.append(
      f"sampling is not on-policy (temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}): "
      f"the objective compares distributions at temperature {config.objective.student_temperature} and whole, "
      "on tokens drawn "
      "from another one"
    )
  several = config.updates_per_rollout > 1 and not loss_config.surrogate(config)
  if several and loss_config.importance_kind(config) == "none":
    out.append(
      f"{config.updates_per_rollout} updates per rollout: from the second on the tokens are off-policy, and "
      "importance.kind "
      "is none"
    )
  own = reward_verifiers(config) if config.mixture.reward else ()
  own += (config.data.verifier,) if evaluation else ()
  pool = VerifierPool.from_config(config)
  if own := [name for name in own if tasks.is_own(name) and not pool.is_pooled(name)]:
    out.append(
      f"the verifier {own[0]!r} runs in the process that trains, which hangs or ends where it does: one in a file or module gets "
      "a process of its own with config.reward.workers=-1, and config.reward.timeout seconds for an answer"
    )
  if config.mixture.reward and config.horizon.kind != "full":
    out.append(
      f"mixture.reward with a {config.horizon.kind} horizon: of a response that the horizon cuts only an answer counts "
      "that it had stated to the end, so most are judged wrong"
    )
  later = [key for key in ("objective.discount", "mixture.reward") if get(config, key)]
  if later and loss_config.importance_kind(config) != "none" and config.importance.level != "sequence":
    out.append(
      f"importance.level is {config.importance.level!r}, and {' and '.join(later)} make a token answer for "
      "later ones, whose "
      "ratios it leaves out: biased, where 'sequence' is exact but for the cap"
    )
  if teachers[1:] and config.data.teacher_field:
    out.append(f"each of the {len(teachers)} teachers reads every rollout, also those that another one answers")
  sizes = {m.cfg.vocab for m in models}
  if len(sizes) > 1:
    out.append(
      f"vocabulary sizes differ ({' and '.join(map(str, sorted(sizes)))}): all models are compared over the first "
      f"{sampling.vocab} ids, the rest is treated as padding"
    )
  if never := sum(end - first for first, end in sampling.never):
    out.append(
      f"{never} of the {sampling.vocab} ids that the models share belong to no token of the tokenizer, the first of them "
      f"{sampling.never[0][0]}: they are never drawn; the loss is over all {sampling.vocab}{_by_drawn_tokens(config)}"
    )
  if (slices := specs.micro_batch(config, mesh)) != config.micro_batch and config.micro_batch:
    out.append(
      f"config.micro_batch is {config.micro_batch}; a mesh of {meshes.row_shards(mesh)} row shards takes {slices} rows"
    )
  out += model_sharding.uneven(mesh, "the student", student.cfg)
  for m in teachers:
    out += model_sharding.uneven(mesh, f"the teacher {m.path.name}", m.cfg)
  if not student.stop_ids:
    out.append("the student has no stop token: every rollout is cut by the horizon")
  out += dict.fromkeys(f"{m.name}: {m.stop_note}" for m in models if m.stop_note)
  out += dict.fromkeys((*train.notes, *(evaluation.problems.notes if evaluation else ())))
  for path, skipped in (
    *([(s.path, s.skipped) for s in train.sources] or [(configs.data_paths(config)[0], train.skipped)]),
    (config.eval.path, evaluation.problems.skipped if evaluation else 0),
  ):
    if skipped:
      out.append(f"{skipped} unusable line(s) of {path} were left out")
  if evaluation:
    trained_on = set(_told(train))
    if both := sum(prompt in trained_on for prompt in _told(evaluation.problems)):
      out.append(f"{both} of {len(evaluation.problems.ids)} evaluation prompts stand in the training data too")
  return tuple(out)


def _by_drawn_tokens(config: Config) -> str:
  """Tells what the loss makes of drawn tokens where some ids are compared and never drawn; "" for nothing."""
  by = []
  if config.objective.support == "sampled":
    by.append("the sampled tokens leave out what lies on these ids")
  if loss_config.importance_kind(config) != "none":
    by.append("importance ratios are lower by the probability that the student gives them, at every token")
  return f" ({' and '.join(by)})" if by else ""


def _told(problems: Problems) -> list[Any]:
  """What each problem says, and shows: conversations by their words, since student and teachers may read them in other forms."""
  if problems.images:
    shown = [tuple((ref.source, ref.boxes) for ref in refs) for refs in problems.images]
    return list(zip(map(tuple, problems.ids), shown, strict=True))
  return [repr(c.full) for c in problems.conversations] or [tuple(ids) for ids in problems.ids]
