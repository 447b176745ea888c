"""The configs of the methods: files of configs/, and what they have in common at each scale."""

import math
import pathlib
import runpy

from ml_collections import ConfigDict

from opd_jax.config.allowed import shown
from opd_jax.config.paths import expanded_path
from opd_jax.config.values import Config, default
from opd_jax.errors import InputError


def load(spec: str) -> Config:
  """The config of 'configs/popd.py:hf', or of a method's name alone, 'popd:hf'."""
  name, _, scale = spec.partition(":")
  path = expanded_path(name)
  if not path.suffix:
    path = configs_dir() / f"{name}.py"
  if not path.is_file():
    known = ", ".join(sorted(p.stem for p in configs_dir().glob("*.py")))
    raise InputError(f"There is no config file {path}; the methods in {configs_dir()} are: {known}.")
  try:
    get_config = runpy.run_path(str(path))["get_config"]
    config = get_config(scale) if scale else get_config()
  except InputError:
    raise
  except Exception as e:
    raise InputError(f"The config file {path} fails: {type(e).__name__}: {' '.join(str(e).split())}") from e
  if not isinstance(config, ConfigDict):
    raise InputError(f"In the config file {path} get_config() returns {shown(config)}; make it return its config.")
  return config


def configs_dir() -> pathlib.Path:
  """Finds configs/ of the checkout, or its copy inside an installed wheel."""
  here = pathlib.Path(__file__).resolve().parents[1]
  return here.parent / "configs" if (here.parent / "configs").is_dir() else here / "configs"


def at_scale(scale: str, recipe: str = "opd") -> Config:
  """Makes what OPD, TOPD and POPD share at each scale.

  cpu: the built-in task, minutes on two cores. hf: any two Hugging Face directories and a JSONL file, small enough for
  a first try. paper: the published hyper-parameters of arXiv:2605.31490 (pair A); optimiser betas, clipping and
  warm-up are not stated there and are ours.
  """
  c = default(recipe)
  if scale == "cpu":
    c.steps = 60
    c.optimizer.warmup = 10
    return c
  if scale == "hf":
    c.student = c.teacher = "DIR"  # to be overridden
    c.data.path = "train.jsonl"
    c.horizon.max = 1024
    c.batch = 16
    c.eval.every = 0
    c.optimizer.lr = 1e-6
    return c
  if scale == "paper":
    c.student = "DeepSeek-R1-Distill-Qwen-1.5B"  # local copies of the hub directories
    c.teacher = "JustRL-DeepSeek-1.5B"
    c.data.path = "dapo-math-17k.jsonl"
    c.data.max_prompt = 1024
    c.steps = 558
    c.batch = 64
    c.rollouts_per_prompt = 4
    c.micro_batch = 8
    c.horizon.max = 15360
    c.objective.support = "student_topk"
    c.objective.tail = "reweight"
    c.objective.k = 16
    c.optimizer.lr = 1e-6
    c.eval.every = 5
    c.eval.path = "aime24.jsonl"
    c.eval.prompts = 30
    c.eval.k = 16
    c.eval.batch = 30
    c.mesh.fsdp = -1
    c.mesh.data = 1
    c.remat = "layer"
    c.buckets = 2
    return c
  raise InputError(f"There is no scale {scale!r}; the scales are 'cpu', 'hf' and 'paper'.")


def shown_to_pupil(c: Config) -> Config:
  """Gives a config of self-distillation the built-in student that repeats a solution, and its way to be shown one."""
  c.student = "builtin:short-pupil"
  c.data.path = "task:chain-short"
  c.horizon.max = 140
  c.context.template = "{prompt}{solution}="
  c.context.solution_template = ":{text}"
  c.context.feedback = "none"  # the built-in tokenizer has no words
  c.context.max_tokens = 320
  c.steps = 60
  c.eval.every = 20
  c.eval.greedy = True
  return c


def tutored_by_specialist(c: Config) -> Config:
  """Gives a config of co-distillation the two built-in specialists, and the symbols that they comment and are shown comments in."""
  c.student, c.codistillation.peer = "builtin:sums-specialist", "builtin:differences-specialist"
  c.data.path = "task:operators"
  c.horizon.max = 20
  c.context.template = "{prompt}{solution}{feedback}="
  c.context.solution_template = ":{text}"
  c.context.feedback_template = ">{text}"
  c.context.max_tokens = 48
  c.context.widths = 0.0  # one program
  c.comment.template = "{prompt}{response}a"
  c.comment.anchor = ">{text}>"
  c.comment.leaks = "none"  # they name no answer
  c.comment.max_tokens = 24
  c.comment.max_prompt = 32
  c.eval.every = 20
  c.eval.greedy = True
  return c


def taught_by_feedback(c: Config) -> Config:
  """Gives a config what SDPO and its kin share: groups, a teacher that is the student's moving average, and their loss."""
  c.teacher = "initial"
  c.teacher_update.kind = "ema"
  c.teacher_update.rate = 0.05
  c.context.kind = "feedback"
  c.rollouts_per_prompt = 8
  c.horizon.kind = "full"
  c.objective.kind = "jsd"
  c.objective.beta = 0.5
  c.objective.support = "student_topk"
  c.objective.k = 100
  c.importance.kind = "truncated"
  c.importance.cap = 2.0
  return c


def policy_gradient(c: Config, scale: str) -> Config:
  """Makes of a config of `at_scale` what the policy gradients share: a reward in the place of a teacher.

  paper: the published hyper-parameters of DRPO (arXiv:2606.09821) for Qwen3-4B.
  """
  c.teacher = ""
  c.mixture.divergence = 0.0
  c.mixture.reward = 1.0
  c.rollouts_per_prompt = 8
  c.mini_batches = 2
  if scale == "cpu":
    c.batch = 16
    c.steps = 40
  if scale == "paper":
    c.student = "Qwen3-4B"  # a local copy of the hub directory
    c.data.max_prompt = 2048
    c.steps = 800
    c.horizon.max = 8192
    c.objective.support = "full"
    c.objective.tail = "bucket"
    c.optimizer.weight_decay = 0.01
  return c


def branching(c: Config, scale: str) -> Config:
  """Gives a config what methods share whose rollouts branch: a reward, PPO's clip, and the steps of their trees.

  paper: the published hyper-parameters of GraphPO (arXiv:2606.18954) for Qwen2.5-Math-7B.
  """
  c.teacher = ""
  c.mixture.divergence = 0.0
  c.mixture.reward = 1.0
  c.surrogate.kind = "ppo_clip"
  if scale == "cpu":
    c.student = "builtin:countdown-4-student"
    c.data.path = "task:countdown-4"
    c.batch = 16
    c.steps = 60
    c.graph.widths = (4, 2, 2)
    c.graph.step_tokens = 9  # 12+34=46 and its stop token
    c.graph.delimiter = ","
    c.graph.state = "key"
    c.eval.every = 20
    c.eval.greedy = True
  if scale == "paper":
    c.student = "Qwen2.5-Math-7B"  # a local copy of the hub directory
    c.data.max_prompt = 1024
    c.steps = 350
    c.batch = 512
    c.mini_batches = 16
    c.optimizer.lr = 1e-6
    c.optimizer.weight_decay = 0.01
    c.graph.widths = (2, 5, 4, 2, 2)
    c.graph.step_tokens = 512
  c.rollouts_per_prompt = math.prod(c.graph.widths)
  c.horizon.max = len(c.graph.widths) * c.graph.step_tokens
  return c
