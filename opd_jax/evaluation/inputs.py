"""What an evaluation needs, read and checked: one model, held-out problems and their verifier."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax import tasks
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.models.spec import ModelSpec
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.training.prompt_images import ModelImages


@dataclasses.dataclass(frozen=True)
class EvaluationInputs:
  """Everything that an evaluation reads; no teacher and no training data."""

  model: ModelSpec
  tokenizer: Any  # of transformers
  problems: Problems
  verify: tasks.Verifier
  sampling: Sampling
  max_tokens: int  # of a response
  segments: Segments
  attention: str  # see models/kernels.py
  mesh: jax.sharding.Mesh
  dtype: jnp.dtype
  rendering: Rendering = dataclasses.field(default_factory=Rendering)  # of prompts that are made meanwhile
  images: ModelImages | None = None  # how the model sees the problems' images; None: they have none
  extract_answer: tasks.AnswerExtractor | None = None  # where the verifier's task can tell which answer a reply claims

  @property
  def generator_config(self) -> GeneratorConfig:
    """The model as it generates in an evaluation."""
    return GeneratorConfig(self.model.cfg, self.sampling, self.segments, self.attention, self.mesh, self.dtype)
