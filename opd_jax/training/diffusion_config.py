"""What a config of the recipe 'diffusion' says of canvases, and which combinations of its keys make no sense."""

from typing import Any

from opd_jax import config as configs
from opd_jax.config import INITIAL
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.horizon import schedule as horizons
from opd_jax.rollout.denoise import DEFAULT_EPS, NO_CONFIDENCE, Denoising
from opd_jax.training.specs import Specs


def denoising(config: Any, length: int, steps: int, key: str = "horizon.max") -> Denoising:
  """Says how a canvas of so many positions is filled in so many steps.

  Raises:
    InputError: the blocks do not divide it, or the steps are no whole number for each block.
  """
  c = config.denoising
  _check_denoising(config)
  block = length if c.schedule == "linear" else c.block
  if length % block:
    raise InputError(
      f"config.denoising.block is {block}, which does not divide a canvas of {length} tokens; change it, denoising.length or eval.max_tokens."
    )
  blocks = length // block
  if steps % blocks or not 1 <= steps // blocks <= block:
    raise InputError(
      f"config.{key} gives {steps} denoising steps for {blocks} block(s) of {block} tokens; it has to be a multiple of {blocks} from {blocks} "
      f"to {length}."
    )
  return Denoising(block, steps // blocks, c.remasking, c.eos, c.cache, c.schedule, c.eps, c.confidence_temperature)


def _check_denoising(config: Any) -> None:
  """Refuses a schedule with blocks, and keys that a schedule or a way of remasking has no use for.

  Raises:
    InputError: says which key is wrong.
  """
  c = config.denoising
  if c.schedule == "linear" and c.block != c.length:
    raise InputError(
      f"config.denoising.schedule is 'linear', which fills a canvas as a whole, and config.denoising.block is {c.block}; set it to "
      f"config.denoising.length, {c.length}."
    )
  if c.schedule != "linear" and c.eps != DEFAULT_EPS:
    raise InputError(
      f"config.denoising.eps is {c.eps:g}, which is a time of the schedule 'linear', and config.denoising.schedule is {c.schedule!r}; leave it "
      f"{DEFAULT_EPS:g}."
    )
  if c.remasking == "origin" and c.schedule != "linear":
    raise InputError(
      f"config.denoising.remasking is 'origin', which commits by the shares of the schedule 'linear', and config.denoising.schedule is "
      f"{c.schedule!r}; set that to 'linear', or take the remasking 'random'."
    )
  if c.remasking == "origin" and c.eos == "last":
    raise InputError(
      "config.denoising.eos is 'last', and config.denoising.remasking 'origin' commits nothing first or last; take 'plain' or 'never'."
    )
  if c.confidence_temperature and c.remasking in NO_CONFIDENCE:
    raise InputError(
      f"config.denoising.confidence_temperature is {c.confidence_temperature:g}, and config.denoising.remasking {c.remasking!r} asks for no "
      "confidence; leave it 0."
    )


def of_evaluation(config: Any, length: int) -> Denoising:
  """Says how an evaluation fills its canvases: as many tokens at a time as in training, unless `eval_steps` says otherwise.

  Raises:
    InputError: that is no whole number of steps for each block.
  """
  own, T, L = config.denoising.eval_steps, config.horizon.max, config.denoising.length
  if not own and T * length % L:
    raise InputError(
      f"config.eval.max_tokens is {length}, which {T} denoising steps for {L} tokens do not fill in a whole number of steps; change it, or set "
      "config.denoising.eval_steps."
    )
  return denoising(config, length, own or T * length // L, "denoising.eval_steps" if own else "horizon.max")


def check(specs: Specs) -> None:
  """Refuses what a masked diffusion model cannot do, and keys that would do nothing.

  Raises:
    InputError: says which key is wrong.
  """
  c = specs.config
  if other := [model.name for model in specs.models if model.cfg.causal]:
    raise InputError(
      f"{other[0]} writes from left to right, and the recipe 'diffusion' trains masked diffusion models: directories of LLaDA or Dream, or the "
      "built-in ones."
    )
  denoising(c, c.denoising.length, c.horizon.max)
  if c.horizon.kind not in ("full", "truncated", "progressive", "geometric"):
    raise InputError(
      f"config.horizon.kind is {c.horizon.kind!r}, which measures responses token by token; a horizon of denoising steps is full, truncated, "
      "progressive or geometric."
    )
  longest = min(model.cfg.max_positions for model in specs.models)
  if c.context.reveal == "prefix" and c.data.max_prompt + 2 * c.denoising.length > longest:
    raise InputError(
      f"config.data.max_prompt is {c.data.max_prompt} and config.denoising.length {c.denoising.length}, which stands twice before the teacher with "
      f"context.reveal 'prefix', and the model has {longest} positions; lower one of the two."
    )
  if configs.teacher_names(c) != (INITIAL,) or Rendering.from_config(c).teacher_differs:
    raise InputError(
      f"config.teacher is {' and '.join(configs.teacher_names(c)) or 'none'}, or reads prompts of its own; here the student teaches itself, so set "
      "config.teacher=initial, no config.teachers, and no data.teacher_* keys."
    )
  if c.eval.every:
    of_evaluation(c, c.eval.max_tokens or c.denoising.length)
  one_block = c.denoising.length == c.denoising.block
  for key, value, otherwise in (("context.reveal", "ahead", "any"), ("diffusion.in_block", True, False)):
    if one_block and configs.get(c, key) == value:
      raise InputError(
        f"config.{key} is {value!r}, which asks where a block ends, and config.denoising.block is the whole canvas; set it to {otherwise!r}, or set "
        "config.denoising.block lower."
      )
  if c.diffusion.states == "unended" and one_block and c.denoising.schedule == "even":
    raise InputError(
      "config.diffusion.states is 'unended', which leaves out the last block, and there is one; set it to 'all', or config.denoising.block lower."
    )
  fixed = {
    "rollout.by": "student",
    "mixture.divergence": 1.0,
    "objective.normaliser": "token",
    "reward.overlong": "judge",
    "log.optimizer": False,
    "weights.kind": "uniform",
    "mixture.reward": 0.0,
    "mixture.initial": 0.0,
    "mini_batches": 1,
    "micro_batch": 0,
    "buckets": 1,
    "objective.shuffle_teacher": False,
    "objective.token_clip": 0.0,
    "rollout.precision": "compute",
    "subnetwork.mask": "none",
    "teacher_offload": False,
  }
  configs.check_fixed(c, fixed)
  asks = c.diffusion.target == "teacher" or (c.diffusion.target == "samples" and c.diffusion.compared == "teacher")
  idle = {
    "context.share": (0.25, not asks or c.context.reveal == "prefix"),
    "context.reveal": ("any", not asks),
    "diffusion.in_block": (False, c.diffusion.compared == "student"),
    "advantage.kind": ("auto", c.diffusion.target != "reward"),
    "rollout.ahead": (False, c.diffusion.target == "reward"),
  }
  for key, (only, idles) in idle.items():
    if idles and (value := configs.get(c, key)) != only:
      raise InputError(
        f"config.{key} is {value!r}, which does nothing, or not what it says, with diffusion.target={c.diffusion.target}, "
        f"diffusion.compared={c.diffusion.compared} and context.reveal={c.context.reveal}; set it to {only!r}."
      )
  if c.objective.support == "sampled":
    raise InputError(
      "config.objective.support is 'sampled', and positions of a canvas are compared whole; take 'full' or 'teacher_topk'."
    )
  if c.log.rollouts and c.diffusion.target == "reward":
    raise InputError(
      "config.log.rollouts writes what is learned canvas by canvas, and config.diffusion.target 'reward' learns from none; set it to 0."
    )
  if c.diffusion.parts > 1:
    parts = c.diffusion.parts
    if bad := [width for width in horizons.from_config(c.horizon).widths if width % parts]:
      raise InputError(
        f"config.diffusion.parts is {parts}, which does not divide a horizon of {bad[0]} denoising steps; change one of the two."
      )
  if c.diffusion.target == "reward" and c.updates_per_rollout * c.diffusion.parts > 1:
    raise InputError(
      f"config.updates_per_rollout x config.diffusion.parts is {c.updates_per_rollout * c.diffusion.parts}, and with diffusion.target 'reward' a "
      "rollout is learned from once; set both to 1."
    )
  if c.diffusion.target == "reward" and c.rollouts_per_prompt < 2:
    raise InputError(
      "config.diffusion.target is 'reward', which compares the rollouts of a prompt; set rollouts_per_prompt to 2 or more."
    )
