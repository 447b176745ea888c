"""What every method answers, so that one trainer, one planner and one benchmark serve all of them.

    experience = recipe.collect(run, step)            rollouts, and what is made of them
    metrics = recipe.learn(run, step, experience)     one update or several

A *recipe* is one method: it is made of specs alone (config and sizes of models), and what it remembers on the host is small
and JSON. A *run* (runtime/run.py) holds everything that moves and belongs to no method: prompts, state, keys, compiled
programs, clock, log, checkpoints, the wish to stop.

A recipe is a module: of this folder by its file's name, or any other by its dotted path (`config.recipe`). It has the class
as RECIPE, and may have KEYS, the config keys of its own: {"group.name": (default, "meaning", "values")}, a literal, since it is
read without importing the module (config/recipes.py). The values are in the notation of config/allowed.py, and may be left out.
"""

import abc
import dataclasses
import functools
import importlib
import operator
import pathlib
import zlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from opd_jax import inputs
from opd_jax.config import Config, recipe_module
from opd_jax.errors import InputError
from opd_jax.evaluation import EvaluationInputs, Evaluator, MultiTurnEvaluator, WithGreedy, make_evaluator
from opd_jax.models import decoder, hf, hf_config, lora, model_sharding, roofline, weights
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.roofline import Cost
from opd_jax.models.spec import ModelSpec
from opd_jax.rollout.generate import Generator, GeneratorConfig
from opd_jax.runtime import keys, workdir
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.programs import ProgramCache, StepShape
from opd_jax.runtime.run import Run
from opd_jax.training import subnetwork
from opd_jax.training.checkpoint import Checkpoints
from opd_jax.training.specs import Specs
from opd_jax.training.subnetwork import Subnetwork
from opd_jax.types import Batch, MaskedTrainState, Params, TrainState

PyTree = Any


class Recipe(abc.ABC):
  """One method. The abstract methods are what a new one has to write; the others have a default.

  Args:
    specs: sizes and settings; neither weights nor data are read here.
  """

  def __init__(self, specs: Specs):
    self.specs = specs

  cuts_rollouts = True  # whether the horizon ends rollouts; False: a rollout costs the same whatever it is

  @property
  def config(self) -> Config:
    return self.specs.config

  @property
  def static(self) -> Hashable:
    """All that compiled programs depend on besides their shape; runs with equal ones share programs. By default none do."""
    return self

  # What is trained, and what is not.

  @abc.abstractmethod
  def init(self) -> PyTree:
    """Makes all that is trained, with optimisers and moving teachers; checkpointed as one tree.

    Weights come from `specs`, so that the same method also makes random ones, under jax.eval_shape too.
    """

  def frozen(self, *, teachers: bool = True) -> PyTree:
    """Loads the models that never change: they are read again when a run resumes, and never saved.

    Args:
      teachers: False leaves out what is only needed to train, for evaluation and export.
    """
    return None

  def begin(self) -> PyTree:
    """Makes the state of a new run: `init`, with the masks of coordinates that `config.subnetwork` asks for.

    Raises:
      InputError: a mask cannot be found, or nothing would be trained with it.
    """
    rule = Subnetwork.from_config(self.config)
    if rule is None:
      return self.init()
    self.check_begin()
    # Before there are moments, so that a search needs no more memory than training does.
    masks = {name: self._find_mask(name, rule) for name in _masked(self.abstract_state())}

    def with_mask(path: Any, state: Any) -> Any:
      if not isinstance(state, MaskedTrainState):
        return state
      return dataclasses.replace(state, mask=masks[_model_name(path)])

    return jax.tree_util.tree_map_with_path(with_mask, self.init(), is_leaf=_is_train_state)

  def _find_mask(self, name: str, rule: Subnetwork) -> Params:
    """Finds the mask of a model that is trained, from its weights before training."""
    spec, mesh, source = self.spec(name), self.specs.mesh, self.mask_from(name)
    before = hf.load(spec.path, spec.cfg, model_sharding.parameter_shardings(mesh, spec.cfg))
    other = OtherRun.find(source, name, self).load() if source else None
    key = jax.random.fold_in(keys.of_seed(self.config.seed, keys.Use.COORDINATE_MASK), zlib.crc32(name.encode()))
    return rule.find(mesh, before, other, key)

  def check_begin(self) -> None:
    """Refuses what a new run alone reads and cannot: of the models that masks come from, the files' headers.

    Raises:
      InputError: says which key is wrong.
    """
    for name in _masked(self.abstract_state()):
      if source := self.mask_from(name):
        OtherRun.find(source, name, self)

  def mask_from(self, model: str) -> str:
    """Returns the run or directory that the mask of a model of `models` comes from; "": it needs none."""
    return self.config.subnetwork.mask_from

  def mask_lines(self, run: Run) -> Iterator[str]:
    """Says of every masked model which part of it is trained."""
    found = _masked(run.state)
    for name, state in found.items():
      yield from subnetwork.lines(state.mask, state.params, self.config, name if len(found) > 1 else "")

  def abstract_state(self) -> PyTree:
    """Returns the shapes and shardings of `init`; nothing is read or allocated."""
    shapes = jax.eval_shape(self._with_random_weights().init)
    return meshes.abstract(shapes, meshes.shardings(self.specs.mesh, shapes))

  def abstract_frozen(self) -> PyTree:
    """Returns the shapes and shardings of `frozen`; nothing is read or allocated."""
    shapes = jax.eval_shape(self._with_random_weights().frozen)
    return meshes.abstract(shapes, meshes.shardings(self.specs.mesh, shapes, f"teacher:{self.config.mesh.teacher}"))

  def _with_random_weights(self) -> "Recipe":
    return type(self)(self.specs.with_random_weights())

  # Programs.

  @abc.abstractmethod
  def shapes(self, run: Run, step: int) -> Sequence[StepShape]:
    """Lists the shapes that this step and those after it may need, by first use: how many programs there are is known."""

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    """Returns the shape of a step with prompts and responses of these lengths, in tokens, for plans and benchmarks."""
    return StepShape(prompt, response)

  def abstract_prompts(self, shape: StepShape) -> Batch:
    """Returns the shapes and shardings of a step's prompts."""
    size, rows = (self.config.batch, shape.prompt), meshes.rows(self.specs.mesh)
    return Batch(
      prompt=jax.ShapeDtypeStruct(size, jnp.int32, sharding=rows),  # pyright: ignore[reportArgumentType]
      prompt_mask=jax.ShapeDtypeStruct(size, jnp.bool_, sharding=rows),  # pyright: ignore[reportArgumentType]
    )

  @abc.abstractmethod
  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lowers the programs of a shape, with their names, from abstract arguments; the slowest to compile first."""

  def roofline_costs(self, name: str, prompts: int, n: int, prompt: int, response: int) -> list[Cost]:
    """Counts what one call of a program needs at the least, for plans: parts that wait for each other.

    Args:
      name: "rollout", "update" or "evaluate".
      prompts, n: how many, and rollouts of each.
      prompt, response: lengths in tokens; of an update the width of its shape.
    """
    s = self.specs
    features = s.images[0].within(prompt).room if s.images else 0
    sizes = {"vocab": s.sampling.vocab, "itemsize": s.dtype.itemsize, "features": features}
    if name == "update":
      update = roofline.update(s.student.cfg, s.scoring, prompts, n, prompt, response, remat=self.config.remat, **sizes)
      return [update]
    return roofline.rollout(s.student.cfg, prompts, n, prompt, response, **sizes)

  # A step.

  @abc.abstractmethod
  def collect(self, run: Run, step: int) -> Any:
    """Begins the rollouts of a step, and makes of them what is learned from; returns before the device is done."""

  @abc.abstractmethod
  def learn(self, run: Run, step: int, experience: Any) -> dict[str, Any]:
    """Updates `run.state`, once or several times, and returns the step's metrics as host numbers.

    Of the metrics `loss` and `step_tokens` are needed; `by_position`, `skipped` and others see docs/metrics.md. `updated`,
    how many updates moved the weights, `same_reward`, whether all rollouts earned the same, and `verified`, how many verifications
    there were, are not logged: they tell at the end whether anything was learned, see runtime/outcome.py.
    """

  # Afterwards.

  @abc.abstractmethod
  def models(self, state: PyTree, frozen: PyTree = None) -> dict[str, Params]:
    """Names the models that are evaluated and exported; most have one, "student".

    Args:
      frozen: of `frozen`, joined to a model that needs it (an adapter's base); None: the trained parameters alone.
    """

  def spec(self, name: str) -> ModelSpec:
    """Returns the architecture and directory of a model of `models`; its files are copied by an export."""
    return self.specs.student

  def generator(self, model: str, config: GeneratorConfig, tokenizer: Any, **sizes: Any) -> Generator:
    """Makes what answers prompts for a model of `models`, by name: token by token, unless a recipe says otherwise.

    Args:
      config: as the evaluation asks for; its architecture is replaced by the model's own.
      sizes: see rollout.generate.Generator.
    """
    return Generator(dataclasses.replace(config, cfg=self.spec(model).cfg), tokenizer, **sizes)

  def evaluator(
    self, name: str, params: Params, evaluation: EvaluationInputs, program_cache: ProgramCache | None = None
  ) -> Evaluator | MultiTurnEvaluator | WithGreedy:
    """Makes the evaluator of a model of `models`, compiled for its parameters."""
    generator = functools.partial(self.generator, name)
    return make_evaluator(self.config, evaluation, params, program_cache, generator)

  def stages(self) -> list[dict[str, Any]]:
    """Lists the stages of a run, for run.json: see horizon/schedule.py."""
    return []

  def summary(self, run: Run) -> Iterator[str]:
    """Describes in lines what is about to be trained."""
    yield f"{self.config.recipe}, student {self.config.student}, {self.config.steps} steps, workdir {run.workdir.name}"
    yield from self.mask_lines(run)

  def preview(self, inputs: Any, prompt: int) -> Iterator[tuple[str, list[int]]]:
    """Makes what is read beside a prompt and is made of rollouts, with stand-ins for these: what it is, and its token ids.

    Args:
      inputs: of the run, see opd_jax/inputs.py.
      prompt: its number in the training data.
    """
    yield from ()

  def state_dict(self) -> dict[str, Any]:
    """Returns what the recipe remembers on the host (horizon, replay buffer, histories, phase), by name: JSON."""
    return {}

  def load_state_dict(self, saved: dict[str, Any]) -> None:  # noqa: B027
    """Restores what `state_dict` returned; names beside its own belong to the run."""


@dataclasses.dataclass(frozen=True)
class OtherRun:
  """A model that was trained before, and began where one of a recipe's models begins: what a mask is found from.

  Attributes:
    name: of the model in the recipe that is about to be trained, and in the other run's where that trains several.
    cfg: its architecture.
    mesh: that it is loaded onto.
    directory: a model directory; None: it is a run's.
    recipe, root: of the run.
  """

  name: str
  cfg: DecoderConfig
  mesh: jax.sharding.Mesh
  directory: pathlib.Path | None = None
  recipe: Recipe | None = None
  root: epath.Path | None = None

  @classmethod
  def find(cls, source: str, name: str, recipe: Recipe) -> "OtherRun":
    """Finds what `config.subnetwork.mask_from` names, and holds it against a recipe's model by its headers.

    Raises:
      InputError: there is no such run or model, or it did not begin as the recipe's model does.
    """
    spec, run = recipe.spec(name), MirroredDir(source)
    mesh = recipe.specs.mesh
    if not (run.root / "checkpoints").is_dir():
      try:
        directory = hf.resolve(source)
        cfg = hf_config.read(directory)
        weights.check(directory, cfg)
      except InputError as e:
        raise InputError(
          f"config.subnetwork.mask_from names neither a workdir with checkpoints nor a model: {e}"
        ) from None
      _check_same(source, cfg, spec)
      return cls(name, cfg, mesh, directory)
    config = workdir.load_config(run.fetch())
    other = make(inputs.load_student(config, mesh))
    if workdir.last_checkpoint(run) is None:
      raise InputError(
        f"config.subnetwork.mask_from is {source}, which has no complete checkpoint yet; train it first."
      )
    if lora.from_config(config.lora):
      raise InputError(
        f"config.subnetwork.mask_from is {source}, which trains an adapter; export it with --merge, and name that directory."
      )
    models = _trained(other.abstract_state())
    if name not in models:
      raise InputError(
        f"config.subnetwork.mask_from is {source}, which has no model {name!r}, only {', '.join(map(repr, models))}; name a run that has."
      )
    began = other.spec(name)
    _check_same(source, began.cfg, spec)
    if began.path.resolve() != spec.path.resolve():
      raise InputError(
        f"config.subnetwork.mask_from is {source}, which began with {began.name}, and {name} begins with {spec.name}, so that what it moved "
        "is not known; name a run of the same start."
      )
    return cls(name, began.cfg, mesh, None, other, run.root)

  def load(self) -> Params:
    """Loads its weights, fp32, in the train layout."""
    if self.directory is not None:
      return hf.load(self.directory, self.cfg, model_sharding.parameter_shardings(self.mesh, self.cfg))
    assert self.recipe is not None
    assert self.root is not None
    keys, state = _trained(self.recipe.abstract_state())[self.name]
    like: PyTree = {"params": state.params}
    for key in reversed(keys):
      like = {key: like}
    checkpoints = Checkpoints(self.root)
    found = checkpoints.restore_part(like)
    checkpoints.close()
    return functools.reduce(operator.getitem, (*keys, "params"), found)


def _check_same(source: str, cfg: DecoderConfig, spec: ModelSpec) -> None:
  """Refuses a model whose weights have other shapes than the one that is trained."""
  theirs, ours = decoder.shapes(cfg), decoder.shapes(spec.cfg)
  if theirs != ours:
    raise InputError(
      f"config.subnetwork.mask_from is {source}, whose architecture is not that of {spec.name}; name a run of the same start."
    )


def _is_train_state(x: Any) -> bool:
  return isinstance(x, TrainState)


def _keys(path: Any) -> tuple[str, ...]:
  return tuple(str(key.key) for key in path)


def _model_name(path: Any) -> str:
  """Names the model whose train state stands at a path of a recipe's state: its last key, or "student" where it is all."""
  return (_keys(path) or ("student",))[-1]


def _trained(state: PyTree) -> dict[str, tuple[tuple[str, ...], TrainState]]:
  """Finds the train states in a recipe's state, by model, with the keys that lead to each."""
  found = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_train_state)
  return {_model_name(path): (_keys(path), each) for path, each in found if isinstance(each, TrainState)}


def _masked(state: PyTree) -> dict[str, MaskedTrainState]:
  """Finds the train states that have a mask, by model."""
  return {name: each for name, (_, each) in _trained(state).items() if isinstance(each, MaskedTrainState)}


def saved_models(recipe: Recipe, root: epath.Path, step: int | None = None) -> tuple[dict[str, Params], int]:
  """Loads the models of a checkpoint, to evaluate or generate with, and the checkpoint's step.

  Args:
    root: the workdir.
    step: of the checkpoint; None: the last.

  Raises:
    InputError: there is no such checkpoint, or it cannot be read.
  """
  state, step = saved_state(recipe, root, step)
  return recipe.models(state, recipe.frozen(teachers=False)), step


def saved_state(recipe: Recipe, root: epath.Path, step: int | None = None) -> tuple[PyTree, int]:
  """Loads all that was trained from a checkpoint, and the checkpoint's step; arguments and errors as of `saved_models`."""
  checkpoints = Checkpoints(root)
  state, position = checkpoints.restore(recipe.abstract_state(), step)
  checkpoints.close()
  return state, position["step"]


def make(specs: Specs) -> Recipe:
  """Makes the recipe that `config.recipe` names.

  Raises:
    InputError: there is no such recipe.
  """
  name = specs.config.recipe
  try:
    return importlib.import_module(recipe_module(name)).RECIPE(specs)
  except AttributeError as e:
    raise InputError(f"config.recipe is {name!r}, and {recipe_module(name)} has no class RECIPE ({e}).") from e
