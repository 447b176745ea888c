"""A tiny model that reads conversations, short runs with it, and replies as a workdir keeps them."""

import dataclasses
from types import SimpleNamespace

import jax
from etils import epath

from opd_jax import config
from opd_jax.context.canonical import Histories
from opd_jax.data.rendering import Rendering
from opd_jax.models import decoder, hf
from opd_jax.tasks import relay
from tests.conftest import STUDENT


def write_talker(path) -> str:
  """A directory of a few thousand random weights that reads conversations of the built-in task."""
  cfg = dataclasses.replace(STUDENT, vocab=len(relay.SYMBOLS))
  hf.write(path, cfg, decoder.init(cfg, jax.random.key(0), scale=0.4), pad_id=0, eos_id=1, dtype="float32")
  relay.TOKENIZER.save(path)
  return str(path)


def small(talker, **changes):
  """A four-step run of conversations with an adapter of the talker."""
  base = {
    "student": talker,
    "data.path": "task:relay",
    "steps": 4,
    "batch": 4,
    "horizon.max": 8,
    "context.turn_tokens": 6,
    "data.widths": 0.0,  # one: fewer programs
    "lora.rank": 2,
    "eval.every": 2,
    "eval.prompts": 4,
    "eval.batch": 4,
    "checkpoint.every": 2,
    "compile_cache": "off",
    "optimizer.lr": 1e-2,
    "log.bins": 4,
    "log.tensorboard": False,
  }
  return config.override(config.load("ccopd"), base | changes)


def saved_histories(conversations, tokenizer, directory) -> Histories:
  """Histories that read replies saved in a directory under the digest "digest", and generate nothing."""
  return Histories(
    conversations=conversations,
    generate=SimpleNamespace(prompt_lens=(64,)),  # pyright: ignore[reportArgumentType]: nothing is generated
    tokenizer=tokenizer,
    key=jax.random.key(0),
    refresh=1,
    final=True,
    directory=epath.Path(directory),
    initial_student=dict,
    digest="digest",
    rendering=Rendering(),
    reply_form=None,  # pyright: ignore[reportArgumentType]: nothing is generated
  )
