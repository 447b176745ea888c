"""The compiled rollout as text, and the search in it for arrays that a token loop writes."""

import dataclasses
import functools
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.models import decoder
from opd_jax.rollout import sample
from opd_jax.rollout.segments import Segments
from opd_jax.types import Batch
from tests.conftest import STUDENT

WIDE = dataclasses.replace(STUDENT, d_model=64, ff_width=96, head_width=16)


def compiled(segments: Segments, cfg: decoder.DecoderConfig = WIDE, n: int = 1) -> str:
  """Compile a rollout in which a weight and a cache are larger than anything else; returns the optimised HLO."""
  params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
  ids: Any = jax.ShapeDtypeStruct((4, 96), jnp.int32)
  mask: Any = jax.ShapeDtypeStruct((4, 96), bool)
  batch = Batch(prompt=ids, prompt_mask=mask)
  key, limit = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
  sampling = sample.Sampling(stop_ids=(1, 7, 9), pad_id=0, vocab=37)
  run = functools.partial(sample.rollout, cfg=cfg, sampling=sampling, response_len=64, segments=segments, n=n)
  quick = "xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")  # see conftest.py
  options: Any = {"xla_cpu_use_fusion_emitters": True} if quick else None
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)  # which would leave the copies in
  try:
    return jax.jit(run).lower(params, batch, key, limit).compile(options).as_text() or ""
  finally:
    jax.config.update("jax_disable_most_optimizations", before)


def writes_in_loops(text: str, at_least: int) -> list[str]:
  """Find instructions inside while loops that write an array of so many elements, other than a cache in place."""
  computations = dict(re.findall(r"^%?(\S+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
  todo, inside = re.findall(r"body=%([\w.\-]+)", text), set()
  while todo:
    name = todo.pop()
    if name not in inside:
      inside.add(name)
      todo += re.findall(r"(?:body|condition|to_apply)=%([\w.\-]+)", computations[name])
  writes = []
  for name in inside:
    for line in computations[name].splitlines():
      write = re.match(r"\s*(?:ROOT )?%(\S+) = (?:f32|bf16)\[([\d,]+)\]\S* ([\w\-]+)\(", line)
      if not write or np.prod([int(n) for n in write[2].split(",")]) < at_least:
        continue
      in_place = "dynamic-update-slice" in write[1] or "dynamic-update-slice" in write[3]
      if not in_place and write[3] not in ("parameter", "get-tuple-element", "bitcast"):
        writes.append(line.strip()[:160])
  return writes
