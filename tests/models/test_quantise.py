"""int8 weights of frozen models: the error they make, the bytes they take, and where they lie on a mesh."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.models import decoder, frozen, hf_config, moe, quantise
from opd_jax.runtime import mesh as meshes
from opd_jax.trainer import open_run, train_run
from tests.conftest import EXPERTS, STUDENT, TEACHER
from tests.helpers.eight_devices import run_on_eight_devices

pytest.importorskip("qwix")

MODELS = {"student": STUDENT, "teacher": TEACHER, "mixture": EXPERTS}


@pytest.fixture(scope="module")
def mixture():
  return decoder.init(EXPERTS, jax.random.key(2), scale=0.5)


def hidden_states(params, cfg, dtype=jnp.float32):
  """Hidden states of two rows, one padded on the left."""
  rng = np.random.default_rng(0)
  tokens, mask = jnp.asarray(rng.integers(2, 37, (2, 9))), jnp.asarray(np.arange(9) >= np.array([[0], [3]]))
  states = decoder.hidden(params, cfg, tokens, mask, dtype=dtype)
  return jnp.where(mask[..., None], states.astype(jnp.float32), 0)


def distance(a, b) -> float:
  """The distance of two arrays relative to the norm of the second."""
  return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


@pytest.mark.long
@pytest.mark.parametrize("role", MODELS)
def test_no_weight_moves_by_more_than_half_the_scale_of_its_output_channel(role, request):
  """Only matrices change; their scales are 127ths of the largest weight over the axes a product sums over."""
  params, cfg = request.getfixturevalue(role), MODELS[role]
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
    back = np.stack([quantise.dense(layer, jnp.float32)[name] for layer in decoder.unstack(int8["layers"], cfg)])
    assert np.all(np.abs(back - w) <= 0.5001 * scale)
    assert np.abs(back - w).max() > 0, "nothing was rounded"

  def rest(tree):
    return {k: v for k, v in tree.items() if k != "layers"}

  jax.tree.map(np.testing.assert_array_equal, rest(int8), rest(params))


def test_scales_belong_to_the_outputs_of_each_product(student, mixture):
  L, D, F = STUDENT.layers, STUDENT.d_model, STUDENT.ff_width
  N, K, h = STUDENT.heads, STUDENT.kv_heads, STUDENT.head_width
  got = {
    n: w.scale.shape
    for n, w in jax.eval_shape(quantise.quantise, student)["layers"].items()
    if quantise.is_quantised(w)
  }
  heads = {"q": (L, 1, N, h), "k": (L, 1, K, h), "v": (L, 1, K, h), "o": (L, 1, 1, D)}
  assert got == heads | {"gate": (L, 1, F), "up": (L, 1, F), "down": (L, 1, D)}

  E = EXPERTS.moe.experts
  got = {
    n: w.scale.shape
    for n, w in jax.eval_shape(quantise.quantise, mixture)["layers"].items()
    if quantise.is_quantised(w)
  }
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
  layer = decoder.unstack(student["layers"], STUDENT)[0]
  for dtype in (jnp.float32, jnp.bfloat16):
    cast = {name: w.astype(dtype) for name, w in layer.items()}
    jax.tree.map(np.testing.assert_array_equal, quantise.dense(layer, dtype), cast)


@pytest.mark.long
@pytest.mark.parametrize("role", MODELS)
def test_hidden_states_of_int8_weights_are_near_the_dense_ones(role, request):
  """In every compute type they are also those of the weights that the int8 ones stand for."""
  params, cfg = request.getfixturevalue(role), MODELS[role]
  int8 = jax.jit(quantise.quantise)(params)
  states = jax.jit(functools.partial(hidden_states, cfg=cfg))
  assert 1e-4 < distance(states(int8), states(params)) < 0.05
  layers = [quantise.dense(w, jnp.float32) for w in decoder.unstack(int8["layers"], cfg)]
  stood_for = params | {"layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}
  for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.02)):
    states = jax.jit(functools.partial(hidden_states, cfg=cfg, dtype=dtype))
    assert distance(states(int8), states(stood_for)) < tolerance


def test_layers_are_made_dense_one_at_a_time():
  """Temporaries of a scan over sixteen layers hold one or two of them, and not the dense model."""
  cfg = dataclasses.replace(TEACHER, d_model=256, ff_width=1024, layers=16)
  params = jax.eval_shape(lambda: quantise.quantise(decoder.init(cfg, jax.random.key(0))))
  program = jax.jit(lambda p: hidden_states(p, cfg)).lower(params).compile()
  layer_bytes = 4 * sum(np.prod(w.shape[1:]) for n, w in params["layers"].items() if n in quantise.CONTRACTED)
  assert program.memory_analysis().temp_size_in_bytes < 3 * layer_bytes


def test_layers_take_a_quarter_of_their_bytes():
  """Qwen3-4B's shape."""
  cfg = decoder.DecoderConfig(151_936, 2560, 36, 32, 8, 128, 9728, qk_norm=True)
  params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))

  def size(tree):
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree["layers"]))

  assert 0.25 < size(jax.eval_shape(quantise.quantise, params)) / size(params) < 0.2505


@pytest.mark.long
def test_a_run_with_an_int8_teacher(small, tmp_path):
  """The three programs compile for it and run."""
  run = open_run(small("opd", steps=1, micro_batch=2, teacher_precision="int8", **{"eval.every": 0}), tmp_path / "w")
  assert run.frozen.teacher_params[0]["layers"]["q"].qvalue.dtype == jnp.int8
  train_run(run)
  record = json.loads((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()[0])
  assert record["loss"] > 0
  assert record["grad_norm"] > 0
  assert record["skipped"] == 0


@pytest.mark.long
def test_eight_devices_read_what_one_reads(tiny):
  """The comparisons are in `on_eight_devices`, whose failure is the process's."""
  script = "import sys; from tests.models import test_quantise; test_quantise.on_eight_devices(sys.argv[1])"
  run_on_eight_devices("-c", script, tiny["teacher"])


def on_eight_devices(directory: str) -> None:
  """An int8 matrix lies as its dense one does; its scales are split where the outputs are."""
  path = pathlib.Path(directory)
  cfg, float32 = hf_config.read(path), jnp.dtype("float32")
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  wide = frozen.external(path, cfg, mesh, float32, "int8")
  alone = frozen.external(path, cfg, meshes.make(devices=jax.devices()[:1]), float32, "int8")
  jax.tree.map(np.testing.assert_array_equal, wide, alone)

  layers, dense = wide["layers"], frozen.external(path, cfg, mesh, float32)["layers"]
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

  def states(p, t):
    return decoder.hidden(p, cfg, t, jnp.ones_like(t, bool))

  got = jax.jit(states, out_shardings=meshes.replicated(mesh))(wide, jax.device_put(tokens, meshes.rows(mesh)))
  assert distance(got, jax.jit(states)(alone, tokens)) < 1e-5

  cfg, mesh = dataclasses.replace(EXPERTS, moe=moe.MoE(6, 2, True)), meshes.make(fsdp=2, expert=2, tensor=2)
  int8 = quantise.quantise(decoder.init(cfg, jax.random.key(2), scale=0.5))

  def mixture_states(params, ids, moe_fn=moe.reference):
    return decoder.hidden(params, cfg, ids, jnp.ones_like(ids, bool), moe_fn=moe_fn)

  apart = jax.jit(functools.partial(mixture_states, moe_fn=functools.partial(moe.feed_forward, mesh)))
  got = apart(jax.device_put(int8, meshes.shardings(mesh, int8)), jax.device_put(tokens, meshes.rows(mesh)))
  assert distance(got, jax.jit(mixture_states)(int8, tokens)) < 1e-5
