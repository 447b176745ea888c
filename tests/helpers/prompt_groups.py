"""A rollout and an update of four rollouts a prompt, on one fake device and on eight, and what the devices send each other.

Prints one JSON object; a process of its own, since a process cannot change its devices.
"""

import collections
import dataclasses
import json
import re

import jax
import numpy as np

from opd_jax.models import decoder, model_sharding
from opd_jax.runtime import mesh as meshes
from opd_jax.training import lowering
from opd_jax.types import Batch, FrozenModels
from tests.conftest import STUDENT
from tests.helpers.distillation import STEP, H, fresh

SENT = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def run(mesh: jax.sharding.Mesh, n: int, cfg: decoder.DecoderConfig = STUDENT) -> dict:
  step = dataclasses.replace(STEP, student=cfg, teachers=(cfg,), mesh=mesh, n=n)
  rng, (p, P) = np.random.default_rng(0), (8, 12)
  batch = Batch(
    prompt=rng.integers(2, 37, (p, P), np.int32),  # pyright: ignore[reportArgumentType]
    prompt_mask=np.arange(P) >= rng.integers(0, P, (p, 1)),  # pyright: ignore[reportArgumentType]
  )
  batch = jax.device_put(batch, meshes.rows(mesh))
  layout = model_sharding.parameter_shardings(mesh, cfg)
  student, teacher = (
    jax.jit(lambda key: decoder.init(cfg, key, scale=0.3), out_shardings=layout)(jax.random.key(i)) for i in (0, 1)
  )
  everywhere = meshes.replicated(mesh)
  counters = {name: jax.device_put(np.int32(0), everywhere) for name in ("step", "skipped", "empty")}
  state = dataclasses.replace(fresh(student), **counters)
  frozen_models = FrozenModels((teacher,))
  programs = {name: lowered.compile() for name, lowered in lowering.step_programs(step, H, state, frozen_models, batch)}
  key, limit = jax.device_put((jax.random.key(3), np.int32(H)), everywhere)
  rollout = programs["rollout"](student, batch, key, limit)
  _, stats = programs["update"](state, frozen_models, batch, rollout, None, None)
  sent = collections.Counter(
    f"{name} {kind}"
    for name, program in programs.items()
    for kind in re.findall(rf"= \S+ ({'|'.join(SENT)})(?:-start)?\(", program.as_text() or "")
  )
  numbers = {"loss": float(stats["loss"]), "grad_norm": float(stats["grad_norm"])}
  return {"tokens": np.asarray(rollout.response).tolist(), **numbers, "sent": dict(sent)}


if __name__ == "__main__":
  eight = meshes.make(data=2, fsdp=2, tensor=2)
  one = meshes.make(devices=jax.devices()[:1])
  print(json.dumps({"one": run(one, 4), "eight": run(eight, 4), "eight, a prompt each": run(eight, 1)}))
