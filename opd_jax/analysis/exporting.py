"""Trained models as directories that transformers, vLLM and PEFT load: what `python -m opd_jax.export` and notebooks write."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator

from opd_jax import inputs
from opd_jax.analysis.loaded import Model
from opd_jax.analysis.trained import TrainedRun
from opd_jax.config import Config, expanded_path
from opd_jax.models import hf, hf_config, lora
from opd_jax.models.lora import Lora
from opd_jax.models.spec import ModelSpec
from opd_jax.recipes import base as recipes
from opd_jax.reports import model_card
from opd_jax.reports.model_card import Exported
from opd_jax.runtime import bucket, hosts, workdir
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Written:
  """A model that was written: which, of which step (None: of no run), what it is ("student" or "adapter"), and where."""

  model: str
  step: int | None
  kind: str
  directory: pathlib.Path


@dataclasses.dataclass(frozen=True)
class _Source:
  """A model to write.

  Attributes:
    adapter: that it was trained through; None: it is whole.
    trained: the parameters that were trained, the adapter alone where there is one.
    whole: loads all of them.
    config, workdir: of the run, for the model card; None: of no run.
  """

  model: str
  step: int | None
  spec: ModelSpec
  adapter: Lora | None
  trained: Params
  whole: Callable[[], Params]
  config: Config | None = None
  workdir: pathlib.Path | None = None


def export(
  source: Model | TrainedRun | str | os.PathLike,
  out: str | os.PathLike,
  *,
  step: int | None = None,
  merge: bool = False,
  dtype: str = "bfloat16",
  config: Config | None = None,
) -> list[Written]:
  """Writes what was trained as a Hugging Face directory; what was trained through an adapter as a PEFT directory.

  A model card, README.md, says what is known of the run: config, data, results, how to load the model.

  Args:
    source: a run that `opd_jax.train` returned, a workdir, or a model.
    out: the directory, which must not hold anything yet; of a run with several models, one directory in it for each.
    step: of the checkpoint of a workdir; None: the last.
    merge: of an adapter: the whole model, with the adapter merged into its base.
    dtype: of the weights of a whole model, "bfloat16" or "float32".
    config: of a workdir, instead of its own: where its models have moved to.

  Raises:
    InputError: something stands in `out` already, there is no such checkpoint, or a weight is NaN or Inf.
  """
  if isinstance(source, Model):
    sources = [_of_model(source)]
  elif isinstance(source, TrainedRun):
    sources = [_of_model(model) for model in source.models.values()]
  else:
    sources = list(_of_workdir(source, step, config))
  root = expanded_path(os.fspath(out))
  return [_write(s, root if len(sources) == 1 else root / s.model, merge, dtype) for s in sources]


def _of_workdir(name: str | os.PathLike, step: int | None, config: Config | None) -> Iterator[_Source]:
  """Finds what a checkpoint holds; of an adapter's run the base is read where it is needed."""
  directory = bucket.MirroredDir(name)
  config = config or workdir.load_config(directory.fetch())
  recipe = recipes.make(inputs.load_student(config, meshes.for_reading(config.mesh)))
  state, step = recipes.saved_state(recipe, directory.root, step)
  for model, trained in recipe.models(state).items():
    yield _Source(
      model,
      step,
      recipe.spec(model),
      lora.from_config(config.lora),
      trained,
      lambda model=model: recipe.models(state, recipe.frozen(teachers=False))[model],
      config,
      directory.path,
    )


def _of_model(model: Model) -> _Source:
  """Takes a model that is loaded, whose parameters are whole."""
  origin = model.origin
  adapter = lora.from_config(origin.config.lora) if origin else None
  trained = lora.adapter_of(model.params, model.spec.cfg, adapter) if adapter else model.params
  if origin is None:
    return _Source("student", None, model.spec, adapter, trained, lambda: model.params)
  path = bucket.MirroredDir(origin.workdir).path
  return _Source(origin.model, origin.step, model.spec, adapter, trained, lambda: model.params, origin.config, path)


def _write(source: _Source, out: pathlib.Path, merge: bool, dtype: str) -> Written:
  """Writes one model, with its card."""
  spec, adapter = source.spec, source.adapter
  alone = adapter is not None and not merge
  facts = Exported(out.name, spec, alone, source.config, source.workdir, source.step, source.model)
  card = model_card.text(facts) if hosts.first() else ""
  if adapter and alone:
    hf.check_new(out)
    params = hosts.all_gather_to_host(source.trained)
    hosts.on_first(lambda: lora.write(out, spec.cfg, adapter, params, str(spec.path.resolve()), spec.path, card))
    return Written(source.model, source.step, "adapter", out)
  params = lora.merge(source.whole(), spec.cfg.adapter_scale) if adapter else source.whole()
  cfg = dataclasses.replace(hf_config.read(spec.path), tower=spec.cfg.tower)
  hf.write(out, cfg, params, like=spec.path, dtype=dtype, card=card)
  return Written(source.model, source.step, "student", out)
