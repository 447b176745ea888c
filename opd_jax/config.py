"""Every key that a run understands, with its default and its meaning.

A method is a file in configs/ that starts from `default()` and answers the five questions. The config is
locked: a key that does not exist is refused. It is saved in the workdir and decides whether a run may resume there.
"""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import json
import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from opd_jax.errors import InputError

Config = Any  # an ml_collections.ConfigDict, whose keys a type checker cannot know

BUILTIN = "builtin:"  # student and teacher directories that ship with the package: "builtin:student"
INITIAL = "initial"  # a teacher: the student before training
TASK = "task:"  # prompts made by a generator in opd_jax/tasks: "task:chain"


def default(recipe: str = "opd") -> Config:
  """Makes the config of the main job on the built-in task; configs/*.py change what their method needs.

  Args:
    recipe: the method, whose own keys are added.
  """
  c = _general()
  c.recipe = recipe
  for key, (value, _) in recipe_keys(recipe).items():
    _set(c, key, value)
  return c.lock()


def _general() -> Config:
  """The keys that every method has; comments are their meanings, for --help."""
  c: Config = ConfigDict()
  c.recipe = "opd"  # the method: a file of opd_jax/recipes, or the dotted path of a module
  c.steps = 100  # rollout batches
  c.seed = 0  # of the order of prompts and of sampling, in training and in evaluation
  c.student = "builtin:student"  # a Hugging Face directory, or builtin:NAME
  c.teacher = "builtin:teacher"  # or "initial": the student as it was before training
  c.teachers = ()  # several teachers, instead of `teacher`: directories; together they are one mixed distribution
  c.teacher_precision = "compute"  # of the teachers' weights: compute (as `precision`), int8 (less memory, needs qwix)
  c.teacher_offload = False  # keep teachers in host memory between updates
  c.teacher_weights = ()  # of the mixture, one per teacher; (): equal. See data.teacher_field for one per example
  c.allow_mismatch = ()  # of "tokenizer", "eos", "chat_template": differences between student and teacher that are intended

  c.lora = ConfigDict()  # low-rank adapters, models/lora.py
  c.lora.rank = 0  # 0: all weights are trained
  c.lora.alpha = 32.0  # A B counts alpha / rank
  c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")  # the layers' matrices that have one
  c.lora.path = ""  # a PEFT directory to begin with; its rank, alpha and targets count

  c.context = ConfigDict()  # what each side reads
  c.context.kind = "same"  # same; canonical (recipe ccopd): the student a conversation, the teacher everything at once

  c.batch = 32  # prompts per step
  c.rollouts_per_prompt = 1
  c.updates_per_rollout = 1  # optimiser updates on each rollout batch
  c.micro_batch = 0  # rows per gradient-accumulation slice, at least one for each row shard; 0: all rows at once
  c.buckets = 1  # response widths of an update: each slice runs at the least that holds its longest row

  c.data = ConfigDict()
  c.data.path = "task:chain"  # a JSONL file, or task:NAME
  c.data.prompt_field = "prompt"  # a string, or a list of chat messages
  c.data.answer_field = "answer"
  c.data.solution_field = ""  # of a file, with rollout.by=data: the response that is learned
  c.data.canonical_field = ""  # of conversations: the prompt that says everything at once; "": all turns as one
  c.data.teacher_field = ""  # of a file: the example's teacher, as an index into `teachers` or a directory's last name
  c.data.max_prompt = 1024  # tokens
  c.data.on_bad_line = "refuse"  # refuse, skip (with a count), or truncate (too long prompts lose their beginning)
  c.data.widths = 1.5  # largest step between two compiled prompt widths, so that at most 1/3 is padding; 0: one width
  c.data.chat_template = True  # wrap prompts in the student's chat template where its tokenizer has one
  c.data.system = ""  # a system message put before every prompt, with a chat template only
  c.data.verifier = "auto"  # auto (the task's own; gsm8k for files), or a name in opd_jax/tasks

  c.horizon = ConfigDict()
  c.horizon.kind = "full"  # full, truncated, progressive, geometric; chosen: agreement, drift, saturation, look
  c.horizon.max = 256  # T: the longest rollout, tokens
  c.horizon.length = 0  # truncated: tokens; 0: use ratio
  c.horizon.ratio = 0.0  # truncated: fraction of max; 0: use length
  c.horizon.start = 0  # progressive, geometric: H_0, tokens; chosen ones: the shortest width, from which they double
  c.horizon.growth = 0  # progressive: dH, tokens
  c.horizon.factor = 0.0  # geometric: H_k+dk over H_k
  c.horizon.every = 1  # steps: progressive, geometric: dk; agreement: between probes; look: between looks
  c.horizon.quantum = 64  # progressive, geometric: compiled widths are multiples of this (and max)
  c.horizon.widths = ()  # chosen ones: the compiled widths below max, tokens; (): doubled from start
  c.horizon.threshold = 0.0  # chosen ones: of the cosine, the overlap or the gap, the ratio; 0: the rule's own
  c.horizon.measure = "overlap"  # drift: of the top log.overlap_k; or "gap", the divergence summed over positions
  c.horizon.window = 8  # saturation: steps
  c.horizon.probes = 8  # agreement: prompts that a probe answers to full length

  c.sampling = ConfigDict()
  c.sampling.temperature = 1.0
  c.sampling.top_p = 1.0  # below 1, and top_k above 0, the rollout is no longer on-policy
  c.sampling.top_k = 0  # 0: off

  c.rollout = ConfigDict()  # how the token loop is cut, rollout/segments.py
  c.rollout.by = "student"  # who speaks; off-policy baselines: teacher (to its own prompts), data (data.solution_field)
  c.rollout.segment = 64  # tokens, at least, between two growths of the cache; 0: the whole cache from the beginning
  c.rollout.segments = 8  # at most; each is compiled
  c.rollout.shrink = ()  # divisors of the batch: gather the rows that have not ended into 1/2, 1/4, ... of it
  c.rollout.ahead = False  # sample step k+1 while step k is verified: one update off-policy, importance-weighted

  c.objective = ConfigDict()  # the distance between student and teacher at a token, objectives/divergence.py
  c.objective.kind = "reverse_kl"  # reverse_kl, forward_kl, jsd, mixture (of the two KLs)
  c.objective.support = "full"  # full, student_topk, teacher_topk, both_topk, sampled
  c.objective.k = 16  # of the top-k supports
  c.objective.tail = "bucket"  # what a top-k leaves out: bucket, renormalise, reweight (the paper's runs)
  c.objective.beta = 0.5  # jsd: the teacher's share of the mean; mixture: the reverse KL's
  c.objective.normalised = False  # jsd divided by beta (1 - beta), so that it meets the two KLs at 0 and 1
  c.objective.student_temperature = 1.0
  c.objective.teacher_temperature = 1.0
  c.objective.entry_clip = 0.0  # largest entry of a divergence, nats; 0: off
  c.objective.token_clip = 0.0  # largest divergence of a token, or |log-ratio| of a drawn one, nats; 0: off
  c.objective.estimator = "auto"  # sampled: k1 (policy gradient), k2, k3, nll (see rollout.by); auto: k1, forward KL k3
  c.objective.discount = 0.0  # sampled k1: 0 token level, 1 sequence level
  c.objective.normaliser = "token"  # mean over tokens of the batch, over rows of means ("sequence"), over a "constant"
  c.objective.constant = 0  # tokens per row; 0: horizon.max
  c.objective.chunk = 0  # tokens per chunk of logits; 0: as many as measured well, see objectives/fused.py
  c.objective.vocab_chunk = 0  # ids per block of the vocabulary, without log.overlap_k; 0: all at once

  c.weights = ConfigDict()  # how much each token's distance counts, objectives/token_weights.py
  c.weights.kind = "uniform"  # first, last, segment, random, linear, rising, gap, student_entropy, teacher_entropy
  c.weights.tokens = 0  # masks: how many tokens of each row
  c.weights.start = 0  # segment: first position, from 0
  c.weights.end = 0.0  # linear: the weight at horizon.max
  c.weights.gamma = 0.5  # gap
  c.weights.mean_one = False  # weights divided by their mean over the row: no change of step size

  c.importance = ConfigDict()  # for rollouts that the student of another update wrote, objectives/kl_estimators.py
  c.importance.kind = "auto"  # none, truncated, masked; auto: truncated where rollouts are not the student's
  c.importance.level = "token"  # token, prefix, sequence: whose probability ratio
  c.importance.cap = 2.0

  c.mixture = ConfigDict()  # coefficients of the loss's terms
  c.mixture.divergence = 1.0
  c.mixture.reward = 0.0  # policy gradient of the verifier's verdict, group-relative
  c.mixture.initial = 0.0  # KL(student || student before training), full vocabulary
  c.mixture.reward_std = False  # divide group-relative advantages by the group's standard deviation

  c.optimizer = ConfigDict()
  c.optimizer.kind = "adamw"
  c.optimizer.lr = 1e-4
  c.optimizer.warmup = 0  # updates from 0 to lr, then constant
  c.optimizer.clip = 1.0  # global norm; 0: off
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.999
  c.optimizer.eps = 1e-8
  c.optimizer.weight_decay = 0.0  # matrices only
  c.optimizer.max_skipped = 10  # updates in a row with a NaN or Inf before the run stops

  c.eval = ConfigDict()
  c.eval.every = 10  # steps, also before the first and after the last; 0: never
  c.eval.path = ""  # "": the task's held-out problems; a file has to be named
  c.eval.prompts = 128
  c.eval.k = 1  # samples per prompt
  c.eval.pass_at = (1,)  # pass@k for each of these, none above eval.k
  c.eval.max_tokens = 0  # 0: horizon.max. Evaluation is never cut by the horizon
  c.eval.temperature = 1.0  # 0: greedy
  c.eval.batch = 128  # prompts per call of the evaluation program

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 50  # steps, also after the last; 0: only after the last
  c.checkpoint.keep = 2

  c.mesh = ConfigDict()
  c.mesh.data = -1  # -1: the devices that the other axes leave
  c.mesh.fsdp = 1
  c.mesh.expert = 1  # experts of a mixture-of-experts teacher; rows too, as fsdp
  c.mesh.tensor = 1
  c.mesh.teacher = "fsdp"  # teachers' weights lie, beside tensor, over: none, fsdp, all (data too)

  c.precision = "auto"  # compute type: float32, bfloat16; auto: float32 on CPU, bfloat16 on accelerators
  c.attention = "auto"  # xla, blocks (CPU), cudnn (GPU), splash (TPU); auto: the platform's own, models/kernels.py
  c.remat = "none"  # what the backward pass computes again: none, dots (all but products with weights), layer
  c.compile_cache = "auto"  # a directory, "off", or auto: .jax_cache beside the workdir

  c.log = ConfigDict()
  c.log.every = 1  # steps
  c.log.bins = 16  # position bins over horizon.max
  c.log.overlap_k = 8  # top-k overlap of student and teacher; 0: off
  c.log.tensorboard = True
  c.log.wandb = ""  # a Weights & Biases project; "": off
  c.log.samples = 2  # rollouts written as text into samples.jsonl at every evaluation
  return c


def recipe_module(name: str) -> str:
  """Returns the module of a recipe: a file of opd_jax/recipes by its name, any other by its dotted path."""
  return name if "." in name else f"opd_jax.recipes.{name}"


def recipe_keys(name: str) -> dict[str, tuple[Any, str]]:
  """Reads the config keys that a recipe declares for itself, as KEYS: {key: (default, meaning)}.

  The module is not imported, since a config is parsed before JAX may be there; so KEYS has to be a literal.

  Raises:
    InputError: there is no such recipe, or its KEYS cannot be read.
  """
  file = _recipe_file(name)
  if file is None:
    known = ", ".join(recipe_names())
    raise InputError(
      f"There is no recipe {name!r}; the recipes are {known}, and another is named by the dotted path of its module."
    )
  for node in ast.parse(file.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["KEYS"]:
      try:
        return ast.literal_eval(node.value)
      except ValueError:
        raise InputError(f"KEYS of the recipe {name!r} ({file}) is not a literal.") from None
  return {}


def _recipe_file(name: str) -> pathlib.Path | None:
  """The source file of a recipe; None where there is none."""
  if "." not in name:
    file = pathlib.Path(__file__).resolve().parent / "recipes" / f"{name}.py"
    return file if name in recipe_names() else None
  try:
    found = importlib.util.find_spec(name)
  except (ImportError, ValueError):
    return None
  return pathlib.Path(found.origin) if found and found.origin else None


def recipe_names() -> tuple[str, ...]:
  """Lists the recipes of the package."""
  folder = pathlib.Path(__file__).resolve().parent / "recipes"
  return tuple(sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "base")))


def with_recipe(config: Config, name: str) -> Config:
  """Returns a config with another recipe: the keys of the former are dropped, those of the new one have their defaults."""
  values = flat(config.to_dict())
  dropped = recipe_keys(config.recipe)
  new = default(name)
  for key, value in values.items():
    if key != "recipe" and key not in dropped and has(new, key) and key not in recipe_keys(name):
      _set(new.unlock(), key, tuple(value) if isinstance(value, list) else value)
  return new.lock()


def implied_recipe(values: Mapping[str, Any]) -> str:
  """Returns the recipe of flat config values that may be from before there were recipes."""
  return values.get("recipe") or ("ccopd" if values.get("context.kind") == "canonical" else "opd")


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
  """Brings the flat values of a saved config up to date: those from before there were recipes have CCOPD's keys always."""
  if "recipe" in values:
    return values
  recipe = implied_recipe(values)
  unused = recipe_keys("ccopd").keys() - recipe_keys(recipe).keys() - {"context.kind"}
  return {k: v for k, v in values.items() if k not in unused} | {"recipe": recipe}


def meanings(recipe: str = "opd") -> dict[str, str]:
  """Returns what each key means, for --help: the comment beside its default, or what its recipe declares."""
  general = re.findall(r"^  c\.([\w.]+) = (?!ConfigDict).*?  # (.*)$", inspect.getsource(_general), re.MULTILINE)
  return dict(general) | {key: meaning for key, (_, meaning) in recipe_keys(recipe).items()}


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


def to_json(config: Config) -> str:
  """The whole config, as it is saved in the workdir."""
  return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def changed(config: Config, free: tuple[str, ...] = ()) -> dict[str, Any]:
  """Returns the keys with other values than by default, without those in `free`.

  So a new key changes no config from before it, and no key says twice what the method is.
  """
  usual, own = (flat(json.loads(to_json(config))) for config in (default(config.recipe), config))
  if own.pop("recipe") != implied_recipe({"context.kind": own["context.kind"]}):
    own["recipe"] = config.recipe
  if config.recipe == "ccopd":
    usual["context.kind"] = "same"  # as before there were recipes
  return {k: v for k, v in own.items() if k not in free and (k not in usual or usual[k] != v)}


def difference(saved: str, now: str, free: tuple[str, ...] = ()) -> list[str]:
  """Lists keys whose values differ between two saved configs, as 'key: saved -> now', without those in `free`.

  A key that did not exist when the first was saved had the value that it has by default now.
  """
  a, b = upgraded(flat(json.loads(saved))), flat(json.loads(now))
  a = {k: v for k, v in flat(json.loads(to_json(default(a["recipe"])))).items() if k in b} | a
  keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k) and k not in free)
  return [f"{k}: {a.get(k, 'absent')} -> {b.get(k, 'absent')}" for k in keys]


def load(spec: str) -> Config:
  """The config of 'configs/popd.py:hf', or of a method's name alone, 'popd:hf'."""
  name, _, scale = spec.partition(":")
  path = pathlib.Path(name)
  if not path.suffix:
    path = configs_dir() / f"{name}.py"
  if not path.is_file():
    known = ", ".join(sorted(p.stem for p in configs_dir().glob("*.py")))
    raise InputError(f"There is no config file {path}; the methods in {configs_dir()} are: {known}.")
  try:
    get_config = runpy.run_path(str(path))["get_config"]
    return get_config(scale) if scale else get_config()
  except InputError:
    raise
  except Exception as e:
    raise InputError(f"The config file {path} fails: {type(e).__name__}: {' '.join(str(e).split())}") from e


def configs_dir() -> pathlib.Path:
  """Finds configs/ of the checkout, or its copy inside an installed wheel."""
  here = pathlib.Path(__file__).resolve().parent
  return here.parent / "configs" if (here.parent / "configs").is_dir() else here / "configs"


def override(config: Config, assignments: dict) -> Config:
  """Returns a copy with dotted keys replaced, types checked and unknown keys refused."""
  config = config.copy_and_resolve_references()
  if (recipe := implied_recipe({"recipe": config.recipe} | assignments)) != config.recipe:
    config = with_recipe(config, recipe)
  elif config.recipe == "opd" and assignments.get("context.kind") == "canonical":
    config = with_recipe(config, "ccopd")
  for key, value in assignments.items():
    try:
      with config.ignore_type() if isinstance(value, (list, tuple)) else contextlib.nullcontext():
        config.update_from_flattened_dict({key: value})
    except (KeyError, AttributeError):
      raise unknown_key(config, key) from None
    except (TypeError, ValueError) as e:
      raise InputError(f"config.{key} cannot be {value!r}: {e}") from None
  return config


def unknown_key(config: Config, key: str) -> InputError:
  """The error for a key that does not exist, with the nearest that does."""
  for recipe in recipe_names():
    if key in recipe_keys(recipe):
      return InputError(
        f"The config key {key!r} belongs to the recipe {recipe!r}, and config.recipe is {config.recipe!r}; "
        f"give --config.recipe={recipe}, or a config of that method."
      )
  near = difflib.get_close_matches(key, flat(config.to_dict()), n=1, cutoff=0.4)
  return InputError(f"There is no config key {key!r}." + (f" Did you mean {near[0]!r}?" if near else ""))


def flat(tree: dict, prefix: str = "") -> dict:
  out = {}
  for k, v in tree.items():
    if isinstance(v, (dict, ml_collections.ConfigDict)):
      out |= flat(dict(v), f"{prefix}{k}.")
    else:
      out[f"{prefix}{k}"] = list(v) if isinstance(v, tuple) else v
  return out


def teacher_names(config: Config) -> tuple[str, ...]:
  """The directories of all teachers: `teachers`, or `teacher` alone."""
  return tuple(config.teachers) or (config.teacher,)


def has(config: Config, key: str) -> bool:
  """Tells whether a dotted key exists."""
  return key in flat(config.to_dict())


def _set(config: Config, key: str, value: Any) -> None:
  """Sets a dotted key, of a group that may not exist yet."""
  *groups, name = key.split(".")
  for group in groups:
    if group not in config:
      config[group] = ConfigDict()
    config = config[group]
  with config.ignore_type():
    config[name] = value


def get(config: Config, key: str):
  """The value of a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config
