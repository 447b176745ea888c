"""Mixtures of experts: the fast forms are the reference, whatever the router says, on one device and on eight."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.models import decoder, moe
from opd_jax.runtime import mesh as meshes
from tests.conftest import EXPERTS
from tests.helpers.eight_devices import json_from_eight_devices

FORMS = ("blocks", "ragged")
D, F, E, k = 16, 8, 6, 2
MOE = moe.MoE(E, k, renormalise=True)


def layer(experts: int = E, ff: int = F, seed: int = 0) -> dict[str, jax.Array]:
  """Weights of one layer's mixture."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)

  return {
    "router": normal(D, experts),
    "experts_gate": normal(experts, D, ff),
    "experts_up": normal(experts, D, ff),
    "experts_down": normal(experts, ff, D),
  }


def tokens(B: int, T: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Inputs, a mask with padding on either side, and a cotangent."""
  rng = np.random.default_rng(1)
  at, row = np.arange(T), np.arange(B)[:, None]
  mask = (at >= row % 3) & (at < T - row % 2)
  x, cotangent = rng.normal(size=(2, B, T, D))
  return jnp.asarray(x, jnp.float32), jnp.asarray(mask), jnp.asarray(cotangent, jnp.float32)


def graded(kind: str, mesh=None, cfg: moe.MoE = MOE):
  """Output, and gradients by the input and by every weight."""

  @jax.jit
  def run(x, w, mask, cotangent):
    out, back = jax.vjp(lambda x, w: moe.feed_forward(mesh, x, w, cfg, mask, kind=kind), x, w)
    return out, *back(cotangent)

  return run


def error(found, expected) -> float:
  """The largest difference relative to the largest number of each array."""

  def relative(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max())

  return max(jax.tree.leaves(jax.tree.map(relative, found, expected)))


@pytest.fixture
def small_blocks(monkeypatch):
  """Several blocks an expert, and several experts a block."""
  monkeypatch.setitem(moe.BLOCK, "cpu", 4)
  monkeypatch.setattr(moe, "RAGGED", 11)


def silu(a: np.ndarray) -> np.ndarray:
  return a / (1 + np.exp(-a))


@pytest.mark.parametrize("renormalise", [True, False])
def test_reference_is_the_definition(renormalise):
  """Token by token and expert by expert, in fp64."""
  cfg, w = dataclasses.replace(MOE, renormalise=renormalise), layer()
  x, mask, _ = tokens(3, 5)
  found = np.asarray(moe.reference(x, w, cfg, mask))
  router, gate, up, down = (np.asarray(w[name], np.float64) for name in moe.PARAMETERS)
  for row, t in np.argwhere(mask):
    token = np.asarray(x, np.float64)[row, t]
    odds = np.exp(token @ router)
    share = odds / odds.sum()
    best = np.argsort(-share)[:k]
    total = share[best].sum() if renormalise else 1
    y = sum(share[e] / total * (silu(token @ gate[e]) * (token @ up[e])) @ down[e] for e in best)
    np.testing.assert_allclose(found[row, t], y, rtol=1e-4, atol=1e-5)
  assert np.abs(found[np.asarray(mask)]).max() > 0.1
  assert (found[~np.asarray(mask)] == 0).all()


ROUTERS = {
  "mixed": lambda router: router,
  "one for all": lambda router: jnp.zeros_like(router),  # all tokens to the first k, nobody to the others
  "lopsided": lambda router: router.at[:, 3].set(0).at[0, 3].set(20),  # half of the tokens to one, the others never
}


@pytest.mark.few(3)
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.usefixtures("small_blocks")
def test_fast_forms_are_the_reference(kind, router):
  """Value and gradient, however uneven the experts' work."""
  w = layer()
  w["router"] = ROUTERS[router](w["router"])
  x, mask, cotangent = tokens(4, 9)
  expected = graded("dense")(x, w, mask, cotangent)
  assert error(graded(kind)(x, w, mask, cotangent), expected) < 2e-6


@pytest.mark.parametrize("kind", FORMS)
def test_fewer_pairs_than_a_block(kind):
  """The forms agree, and give zeros where every token is padding."""
  x, mask, cotangent = tokens(1, 3)
  w = layer()
  assert error(graded(kind)(x, w, mask, cotangent), graded("dense")(x, w, mask, cotangent)) < 2e-6
  out, d_x, d_w = graded(kind)(x, w, jnp.zeros_like(mask), cotangent)
  assert all(np.all(np.asarray(a) == 0) for a in jax.tree.leaves((out, d_x, d_w)))


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.usefixtures("small_blocks")
def test_half_precision(kind):
  """bfloat16 in, bfloat16 out, within a rounding or two of the fp32 mixture of the same numbers."""
  x, mask, cotangent = tokens(4, 9)

  def low(tree):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)

  def up(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)

  x, w, cotangent = low((x, layer(), cotangent))
  found = graded(kind)(x, w, mask, cotangent)
  expected = graded("dense")(up(x), up(w), mask, up(cotangent))
  assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
  assert error(up(found), expected) < 0.03


def test_a_form_that_does_not_exist_is_no_other_one():
  with pytest.raises(ValueError, match="'padded' is not one of"):
    moe.feed_forward(None, jnp.zeros((1, 2, 4)), {}, MOE, kind="padded")


def test_routing_is_in_fp32():
  """bfloat16 inputs are routed as the same numbers in fp32: rounded logits would tie experts that differ."""
  x, router = (a.astype(jnp.bfloat16) for a in (tokens(8, 9)[0].reshape(-1, D), layer()["router"]))
  chosen, weight = moe.route(x, router, MOE)
  exact, share = moe.route(x.astype(jnp.float32), router.astype(jnp.float32), MOE)
  np.testing.assert_array_equal(chosen, exact)
  np.testing.assert_allclose(weight, share, rtol=1e-5)
  np.testing.assert_allclose(weight.sum(-1), 1, rtol=1e-6)


def test_choose():
  assert moe.choose("cpu", 128) == "dense"
  assert moe.choose("cpu", 129) == "blocks"
  assert moe.choose("gpu", 513) == "blocks"
  assert moe.choose("tpu", 512) == "dense"
  assert moe.choose("tpu", 513) == "ragged"


def test_memory_is_that_of_blocks():
  """Temporaries at 2048 tokens stay far under one array of all pairs, gradient included."""
  x = jax.ShapeDtypeStruct((2, 1024, 64), jnp.float32)
  w = {name: jax.ShapeDtypeStruct((16, 64, 64), jnp.float32) for name in moe.PARAMETERS}
  w["router"] = jax.ShapeDtypeStruct((64, 16), jnp.float32)
  cfg = moe.MoE(16, 8, True)

  def temporaries(kind: str) -> int:
    lowered = graded(kind, cfg=cfg).lower(x, w, jax.ShapeDtypeStruct((2, 1024), bool), x)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  pairs = 2048 * 8 * 64 * 4
  assert temporaries("blocks") < pairs < temporaries("dense")


def test_a_token_cannot_have_more_experts_than_there_are():
  with pytest.raises(ValueError, match="3 of 2 experts"):
    moe.MoE(2, 3, True)


@pytest.fixture(scope="module")
def model():
  return decoder.init(EXPERTS, jax.random.key(0), scale=0.5)


@pytest.mark.long
@pytest.mark.usefixtures("small_blocks")
def test_a_whole_model(model):
  """Hidden states of real tokens, and their gradients, where the backward pass makes the mixture again."""
  ids = jnp.asarray(np.random.default_rng(0).integers(2, 37, (2, 9)))
  mask = jnp.asarray(np.arange(9) >= np.array([[0], [3]]))

  def outcome(**hidden_options):
    def loss(params):
      states = decoder.hidden(params, EXPERTS, ids, mask, **hidden_options)
      return jnp.sum(jnp.where(mask[..., None], states, 0) ** 3)

    return jax.jit(jax.value_and_grad(loss))(model)

  calls = []

  def blocks(*arguments):
    calls.append(arguments)
    return moe.feed_forward(None, *arguments, kind="blocks")

  assert error(outcome(remat="dots", moe_fn=blocks), outcome()) < 1e-4
  assert calls


# Sizes of data, fsdp, tensor and expert; experts, their width and rows; the forms that run.
SHARDED = [
  ((1, 1, 2, 4), 8, 8, 8, ("dense", "ragged")),
  ((1, 1, 1, 8), 8, 8, 8, ("blocks",)),
  ((2, 1, 2, 2), 8, 8, 8, ("blocks",)),
  ((1, 1, 2, 4), 6, 7, 8, ("ragged",)),  # experts, and a width of theirs, that no axis divides: every device has all
  ((1, 2, 2, 2), 6, 7, 8, ("blocks",)),  # only the width
  ((1, 1, 2, 4), 8, 8, 3, ("blocks",)),  # rows
]


def errors_on_eight_devices() -> dict[str, float]:
  """How far each form is from the reference on one device."""
  out = {}
  for sizes, experts, ff, B, kinds in SHARDED:
    mesh, cfg = meshes.make(*sizes), moe.MoE(experts, k, True)
    x, mask, cotangent = tokens(B, 7)
    w = layer(experts, ff)
    expected = jax.device_get(graded("dense", cfg=cfg)(x, w, mask, cotangent))
    rows = NamedSharding(mesh, P(meshes.ROWS if B == 8 else None))
    x, mask, cotangent = jax.device_put((x, mask, cotangent), rows)
    for kind in kinds:
      found = graded(kind, mesh, cfg)(x, w, mask, cotangent)
      out[f"{kind} {sizes} {experts} {ff} {B}"] = error(found, expected)
  return out


def collectives_on_eight_devices() -> list[str]:
  """What the compiled blocks send, on fsdp 2 x expert 2 x tensor 2."""
  mesh = meshes.make(1, 2, 2, 2)
  specs = {"router": P("fsdp"), "experts_down": P("expert", "tensor", "fsdp")}
  specs |= dict.fromkeys(("experts_gate", "experts_up"), P("expert", "fsdp", "tensor"))

  def abstract(spec, a):
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))

  w = {name: abstract(specs[name], a) for name, a in layer().items()}
  x, mask, _ = (abstract(P(meshes.ROWS), a) for a in tokens(8, 7))
  run = jax.jit(lambda x, w, mask: moe.feed_forward(mesh, x, w, MOE, mask, kind="blocks"))
  return collectives(run.lower(x, w, mask).compile().as_text() or "")


def collectives(hlo: str) -> list[str]:
  """Operation and result of every collective."""
  found = re.findall(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", hlo)
  return [f"{operation} {shape}" for shapes, operation in found for shape in re.findall(r"\w+\[[\d,]*\]", shapes)]


@pytest.mark.long
def test_eight_devices_give_what_one_gives():
  errors = json_from_eight_devices("tests.models.test_moe", "errors")
  assert len(errors) == sum(len(kinds) for *_, kinds in SHARDED)
  assert max(errors.values()) < 2e-6, errors


@pytest.mark.long
def test_a_device_gathers_tokens_and_never_experts():
  """On fsdp 2 x expert 2 x tensor 2: 28 tokens of two devices; the model width of three experts' halves over fsdp."""
  sent = json_from_eight_devices("tests.models.test_moe", "collectives")
  gathered = sorted(c for c in sent if c.startswith("all-gather"))
  tokens_of_group = ["f32[28,16]", "f32[28,2]", "s32[28,2]"]
  own_experts = ["f32[3,16,4]", "f32[3,16,4]", "f32[3,4,16]"]
  assert gathered == sorted(f"all-gather {a}" for a in [*tokens_of_group, *own_experts, "f32[16,6]"])
  assert "reduce-scatter f32[14,16]" in sent
  assert "all-reduce f32[14,16]" in sent


if __name__ == "__main__":
  moe.BLOCK["cpu"], moe.RAGGED = 4, 11
  ask = {"errors": errors_on_eight_devices, "collectives": collectives_on_eight_devices}[sys.argv[1]]
  print(json.dumps(ask()))
