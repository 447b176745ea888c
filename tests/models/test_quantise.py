"""int8 weights of frozen models: the error they make, the bytes they take, and where they lie on a mesh."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax import mesh as meshes
from opd_jax import teacher as teachers
from opd_jax import trainer
from opd_jax.models import decoder, hf, moe, quantise
from tests.conftest import STUDENT, TEACHER
from tests.models.test_moe import EXPERTS

pytest.importorskip("qwix")

MODELS = {"student": STUDENT, "teacher": TEACHER, "mixture": EXPERTS}


@pytest.fixture(scope="module")
def mixture():
  return decoder.init(EXPERTS, jax.random.key(2), scale=0.5)


def read(params, cfg, dtype=jnp.float32):
  """Hidden states of two rows, one padded on the left."""
  rng = np.random.default_rng(0)
  tokens, mask = jnp.asarray(rng.integers(2, 37, (2, 9))), jnp.asarray(np.arange(9) >= np.array([[0], [3]]))
  states = decoder.hidden(params, cfg, tokens, mask, dtype=dtype)
  return jnp.where(mask[..., None], states.astype(jnp.float32), 0)


def distance(a, b) -> float:
  """Of two arrays, relative to the second."""
  return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


@pytest.mark.parametrize("role", MODELS)
def test_no_weight_moves_by_more_than_half_the_scale_of_its_output_channel(role, request):
  """Only matrices change; their scales are 127ths of the largest weight over the axes a product sums over."""
  params = request.getfixturevalue(role)
  int8 = jax.jit(quantise.quantise)(params)
  for name, w in params["layers"].items():
    got = int8["layers"][name]
    if name not in quantise.CONTRACTED:
      np.testing.assert_array_equal(got, w)
      continue
    assert got.qvalue.dtype == jnp.int8
    assert got.qvalue.shape == w.shape
    scale = np.abs(w).max(quantise.CONTRACTED[name], keepdims=True) / 127
    np.testing.assert_allclose(got.scale, scale, rtol=1e-6)
    back = np.stack([quantise.dense(layer, jnp.float32)[name] for layer in decoder.unstack(int8["layers"], len(w))])
    assert np.all(np.abs(back - w) <= 0.5001 * scale)
    assert np.abs(back - w).max() > 0, "nothing was rounded"
  rest = lambda tree: {k: v for k, v in tree.items() if k != "layers"}
  jax.tree.map(np.testing.assert_array_equal, rest(int8), rest(params))


def test_scales_belong_to_the_outputs_of_each_product(student, mixture):
  L, D, N, K, h, F = (
    STUDENT.layers,
    STUDENT.width,
    STUDENT.heads,
    STUDENT.kv_heads,
    STUDENT.head_width,
    STUDENT.ff_width,
  )
  got = {n: w.scale.shape for n, w in quantise.quantise(student)["layers"].items() if quantise.is_quantised(w)}
  heads = {"q": (L, 1, N, h), "k": (L, 1, K, h), "v": (L, 1, K, h), "o": (L, 1, 1, D)}
  assert got == heads | {"gate": (L, 1, F), "up": (L, 1, F), "down": (L, 1, D)}

  E = EXPERTS.moe.experts
  got = {n: w.scale.shape for n, w in quantise.quantise(mixture)["layers"].items() if quantise.is_quantised(w)}
  assert got == heads | {"experts_gate": (L, E, 1, F), "experts_up": (L, E, 1, F), "experts_down": (L, E, 1, D)}


def test_the_extremes_and_an_empty_channel():
  """The largest weights, of either sign and of bf16, come back exactly; a channel of zeros stays one."""
  w = np.zeros((1, 3, 4), np.float32)
  w[0, :, 0], w[0, :, 1], w[0, :, 2] = (3.0, 0.1, -3.0), (-1e-3, 0, 1e-3), (0, 512.0, 1)
  for dtype in (jnp.float32, jnp.bfloat16):
    got = jax.jit(quantise.quantise)({"layers": {"down": jnp.asarray(w, dtype)}})["layers"]["down"]
    assert got.scale.dtype == jnp.float32
    np.testing.assert_array_equal(got.qvalue[0, :, :3].T, [(127, 4, -127), (-127, 0, 127), (0, 127, 0)])
    np.testing.assert_array_equal(got.qvalue[0, :, 3], 0)
    back = quantise.dense({"down": jax.tree.map(lambda a: a[0], got)}, jnp.float32)["down"]
    peaks = np.abs(w[0]) == np.abs(w[0]).max(0)
    np.testing.assert_allclose(back[peaks], jnp.asarray(w, dtype)[0][peaks].astype(jnp.float32), rtol=1e-6)


def test_broken_weights_stay_broken():
  """A NaN or Inf would otherwise become an ordinary number, and the run would go on."""
  for bad in (np.nan, np.inf, -np.inf):
    w = jnp.ones((1, 3, 4)).at[0, 1, 2].set(bad)
    layer = jax.tree.map(lambda a: a[0], quantise.quantise({"layers": {"down": w}})["layers"])
    back = quantise.dense(layer, jnp.float32)["down"]
    assert not np.isfinite(back[:, 2]).any()
    assert np.isfinite(np.delete(back, 2, axis=1)).all()


def test_plain_weights_are_only_cast(student):
  layer = decoder.unstack(student["layers"], 2)[0]
  for dtype in (jnp.float32, jnp.bfloat16):
    cast = {name: w.astype(dtype) for name, w in layer.items()}
    jax.tree.map(np.testing.assert_array_equal, quantise.dense(layer, dtype), cast)


@pytest.mark.parametrize("role", MODELS)
def test_hidden_states_of_int8_weights_are_near_the_dense_ones(role, request):
  """And in every compute type those of the weights that the int8 ones stand for."""
  params, cfg = request.getfixturevalue(role), MODELS[role]
  int8 = quantise.quantise(params)
  assert 1e-4 < distance(read(int8, cfg), read(params, cfg)) < 0.05
  layers = [quantise.dense(w, jnp.float32) for w in decoder.unstack(int8["layers"], cfg.layers)]
  stood_for = params | {"layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}
  for dtype, most in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.02)):
    states = jax.jit(functools.partial(read, cfg=cfg, dtype=dtype))
    assert distance(states(int8), states(stood_for)) < most


def test_layers_are_made_dense_one_at_a_time():
  """Temporaries of a scan over sixteen layers hold one or two of them, and not the dense model."""
  cfg = dataclasses.replace(TEACHER, width=256, ff_width=1024, layers=16)
  params = jax.eval_shape(lambda: quantise.quantise(decoder.init(cfg, jax.random.key(0))))
  program = jax.jit(lambda p: read(p, cfg)).lower(params).compile()
  one = 4 * sum(np.prod(w.shape[1:]) for n, w in params["layers"].items() if n in quantise.CONTRACTED)
  assert program.memory_analysis().temp_size_in_bytes < 3 * one


def test_layers_take_a_quarter_of_their_bytes():
  """Qwen3-4B's shape."""
  cfg = decoder.DecoderConfig(151_936, 2560, 36, 32, 8, 128, 9728, qk_norm=True)
  params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
  size = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree["layers"]))
  assert 0.25 < size(jax.eval_shape(quantise.quantise, params)) / size(params) < 0.2505


@pytest.mark.long
def test_a_run_with_an_int8_teacher(small, tmp_path, monkeypatch):
  """The three programs compile for it and run."""
  external = teachers.external
  monkeypatch.setattr(trainer.teacher, "external", lambda *a: external(*a[:4], precision="int8"))
  run = trainer.Trainer(small("opd", steps=1, **{"eval.every": 0, "micro_batch": 2}), tmp_path / "w")
  assert run.judges.teaching[0]["layers"]["q"].qvalue.dtype == jnp.int8
  run.run()
  record = json.loads((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()[0])
  assert record["loss"] > 0
  assert record["grad_norm"] > 0
  assert record["skipped"] == 0


@pytest.mark.long
def test_eight_devices_read_what_one_reads(tiny):
  """In a process of its own, since a process cannot change its devices."""
  env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  script = f"from tests.models import test_quantise as t; t.on_eight_devices({tiny['teacher']!r})"
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
  assert done.returncode == 0, done.stderr


def on_eight_devices(directory: str) -> None:
  """An int8 matrix lies as its dense one does; its scales are split where the outputs are."""
  path = pathlib.Path(directory)
  cfg, float32 = hf.read_config(path), jnp.dtype("float32")
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  wide = teachers.external(path, cfg, mesh, float32, "int8")
  alone = teachers.external(path, cfg, meshes.make(devices=jax.devices()[:1]), float32, "int8")
  jax.tree.map(np.testing.assert_array_equal, wide, alone)

  layers, dense = wide["layers"], teachers.external(path, cfg, mesh, float32)["layers"]
  matrices = [name for name in quantise.CONTRACTED if name in layers]
  for name in matrices:
    assert layers[name].qvalue.sharding.is_equivalent_to(dense[name].sharding, dense[name].ndim), name
  heads = {"q": (None, None, "tensor", None), "o": (None, None, None, "fsdp")}
  one_head = dict.fromkeys("kv", (None,) * 4)  # which two devices cannot share
  assert cfg.kv_heads == 1
  ff = {"gate": (None, None, "tensor"), "up": (None, None, "tensor"), "down": (None, None, "fsdp")}
  for name, spec in (heads | one_head | ff).items():
    scale = layers[name].scale
    assert scale.sharding.is_equivalent_to(NamedSharding(mesh, P(*spec)), scale.ndim), name

  tokens = np.random.default_rng(0).integers(2, cfg.vocab, (8, 9)).astype(np.int32)
  states = lambda p, t: decoder.hidden(p, cfg, t, jnp.ones_like(t, bool))
  got = jax.jit(states, out_shardings=meshes.replicated(mesh))(wide, jax.device_put(tokens, meshes.rows(mesh)))
  assert distance(got, jax.jit(states)(alone, tokens)) < 1e-5

  cfg, mesh = dataclasses.replace(EXPERTS, moe=moe.MoE(6, 2, True)), meshes.make(fsdp=2, expert=2, tensor=2)
  int8 = quantise.quantise(decoder.init(cfg, jax.random.key(2), scale=0.5))
  states = lambda p, t, **how: decoder.hidden(p, cfg, t, jnp.ones_like(t, bool), **how)
  apart = jax.jit(functools.partial(states, experts=functools.partial(moe.feed_forward, mesh)))
  got = apart(jax.device_put(int8, meshes.shardings(mesh, int8)), jax.device_put(tokens, meshes.rows(mesh)))
  assert distance(got, jax.jit(states)(int8, tokens)) < 1e-5
