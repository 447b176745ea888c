"""`python -m opd_jax.geometry`: two directories, a run, an adapter; on several devices, in little memory; and what it refuses."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import geometry, trainer
from opd_jax.analysis.geometry import compare as comparison
from opd_jax.analysis.geometry import measure, sources
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, lora
from opd_jax.reports import geometry as reports
from opd_jax.runtime import bucket
from tests.conftest import small_config
from tests.helpers import model_directories, updates
from tests.helpers.eight_devices import ROOT, json_from_eight_devices
from tests.helpers.model_directories import FAMILIES, TINY, edit, randomised

FAST = {"draws": 1, "groups": ("spectra",)}


def update(params, seed, std=1e-3):
  """The parameters after an update that is of rank 1 in every matrix, and leaves the norms."""
  rng = np.random.default_rng(seed)

  def moved(w):
    if w.ndim < 2:
      return w
    outer = rng.standard_normal((*w.shape[:-1], 1)) * rng.standard_normal(w.shape[-1])
    return w + jnp.asarray(std * outer, w.dtype)

  return {name: jax.tree.map(moved, value) if name != "norm" else value for name, value in params.items()}


def start():
  """Parameters that bf16 holds as they are, so that runs of either type begin at the same weights."""
  return jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), randomised(TINY))


def same(value, expected, **tolerance) -> bool:
  """Whether both are undefined, or both numbers and close."""
  return value is None if expected is None else value == pytest.approx(expected, **tolerance)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Directories of a model before training and after two runs, in fp32 and in bf16."""
  root = tmp_path_factory.mktemp("models")
  params = start()
  for dtype in ("float32", "bfloat16"):
    for name, seed in (("before", 0), ("after", 1), ("other", 2)):
      own = update(params, seed) if seed else params
      hf.write(root / f"{name}-{dtype}", TINY, own, pad_id=0, eos_id=1, dtype=dtype)
  return root


@pytest.mark.long
def test_two_directories_from_the_command_line_to_the_page(models, tmp_path, capsys):
  names = [str(models / f"{name}-float32") for name in ("before", "after", "other")]
  assert geometry.main([*names[:2], "--against", names[2], "--draws=2", f"--out={tmp_path}"]) == 0
  record = json.loads((tmp_path / "geometry.json").read_text())
  assert record["kinds"] == ["fp32", "bf16"]
  assert record["elements"] == sum(leaf.size for leaf in jax.tree.leaves(randomised(TINY)))
  assert record["blocks"].keys() == {"attention", "MLP", "embeddings", "norms"}
  assert record["layers"].keys() == {"0", "1"}
  assert len(record["tensors"]) == 3 + 11 * 2  # embedding, head, last norm; seven matrices and four norms a layer
  before, after = (sources.open_source(name).tensors for name in names[:2])
  squares = [
    sum(np.sum(np.square(f(n), dtype=np.float64)) for n in before)
    for f in (
      lambda n: after[n].read(0, after[n].shape[0], 0) - before[n].read(0, before[n].shape[0], 0),
      lambda n: before[n].read(0, before[n].shape[0], 0),
    )
  ]
  found = record["whole"]["fp32"]
  assert found["relative_norm"]["value"] == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-5)
  assert found["stable_rank"]["value"] == pytest.approx(1, abs=1e-3)
  assert found["stable_rank"]["gaussian"]["mean"] > 1.5
  assert record["blocks"]["MLP"]["fp32"]["zero"]["value"] < 0.01
  assert found["overlap_lift"]["value"] is not None
  assert len(record["whole"]["bf16"]["zero"]["permuted"]["draws"]) == 2
  page = (tmp_path / "index.html").read_text()
  pictures = {path.stem for path in tmp_path.glob("*.png")}
  assert pictures == {"sparsity", "norms", "spectra", "coverage", "overlap"}
  assert page.count("data:image/png;base64,") == 5
  for text in (
    "stable rank",
    "permuted null",
    "MLP",
    "bf16: the weights before and after it rounded to 7 mantissa bits",
  ):
    assert text in page
  out = capsys.readouterr().out
  assert "stable rank" in out
  assert str(tmp_path / "index.html") in out


@pytest.mark.long
def test_directories_in_bf16_show_the_rounded_update_alone(models):
  both = [str(models / f"{name}-bfloat16") for name in ("before", "after")]
  record = geometry.compare(*both, **FAST)
  assert record["kinds"] == ["bf16"]
  finer = geometry.compare(*(name.replace("bfloat16", "float32") for name in both), **FAST)
  for name, entry in record["whole"]["bf16"].items():
    assert same(entry["value"], finer["whole"]["bf16"][name]["value"], rel=1e-5), name
  # What is known of the update before rounding makes a null of its norm before rounding, else of the one that is seen.
  norm = record["whole"]["bf16"]["relative_norm"]
  assert norm["gaussian"]["mean"] == pytest.approx(norm["value"], rel=0.2)


def test_two_checkpoints_of_one_name_are_two_models():
  """Of a run compared with itself at another step, and of another step of the run that is compared."""

  def of_step(step):
    array = np.full((2, 2), step, np.float32)
    return sources.Source("runs/x", "run", None, {"w": updates.tensor(array)}, step=step)

  def first(tensor):
    return tensor.read(0, 2, 0)[0, 0]

  (pair,) = sources.match(of_step(1), of_step(2), of_step(3))
  assert [first(t) for t in (pair.before, pair.after, pair.other)] == [1, 2, 3]
  (pair,) = sources.match(of_step(1), of_step(2))
  assert [first(pair.before), first(pair.after), pair.other] == [1, 2, None]


def test_a_run_is_known_however_its_directory_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  places = {
    sources._place(bucket.MirroredDir(name)) for name in ("runs/x", "./runs/../runs/x", str(tmp_path / "runs/x"))
  }
  assert places == {str(tmp_path / "runs" / "x")}
  assert sources._place(bucket.MirroredDir("gs://bucket/x")) == "gs://bucket/x"


def test_products_are_in_full_precision_on_any_device(models):
  """An accelerator would otherwise multiply fp32 as bf16, or as TF32."""
  before, after = (sources.open_source(str(models / f"{name}-float32")) for name in ("before", "after"))
  seen = set()

  def look(name, size):
    seen.add(jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]

  record = comparison.compare(before, after, None, measure.Options(draws=0, groups=()), look)
  assert seen == {"highest"}
  assert record["whole"]["fp32"]["zero"].keys() == {"value"}


def test_a_rounded_end_of_a_finer_beginning_is_noted(models):
  mixed = geometry.compare(str(models / "before-float32"), str(models / "after-bfloat16"), **FAST)
  assert mixed["kinds"] == ["bf16"]
  assert any("however fine the weights before it are" in note for note in reports.notes(mixed))


def test_a_model_beside_itself_is_all_zero_and_the_rest_undefined(models, tmp_path, capsys):
  name = str(models / "before-bfloat16")
  assert geometry.main([name, name, "--draws=2", f"--out={tmp_path}"]) == 0
  record = json.loads((tmp_path / "geometry.json").read_text(), parse_constant=pytest.fail)
  found = record["whole"]["bf16"]
  for statistic in ("zero", "sparsity@1e-06", "relative_sparsity@0.0001"):
    assert (found[statistic]["value"], found[statistic]["gaussian"]["verdict"]) == (1, "within")
  assert found["relative_norm"]["value"] == 0
  for statistic in ("stable_rank", "top_energy@16", "projection@10%", "rotation@10%", "low_coverage@10%"):
    assert found[statistic]["value"] is None
    assert found[statistic]["gaussian"]["verdict"] == "undefined"
  assert "no weight differs" in capsys.readouterr().out
  assert "no weight differs" in (tmp_path / "index.html").read_text()


def test_a_head_that_is_the_embedding_counts_once(tmp_path):
  cfg = decoder.dataclasses.replace(TINY, tied=True)
  params = randomised(cfg)
  for name, seed in (("before", 0), ("after", 1)):
    hf.write(tmp_path / name, cfg, update(params, seed) if seed else params, pad_id=0, eos_id=1, dtype="float32")
    untied = dict(update(params, seed) if seed else params)
    untied["head"] = untied["embed"]
    hf.write(tmp_path / f"{name}-twice", TINY, untied, pad_id=0, eos_id=1, dtype="float32")
  once = geometry.compare(str(tmp_path / "before"), str(tmp_path / "after"), **FAST)
  twice = geometry.compare(str(tmp_path / "before-twice"), str(tmp_path / "after-twice"), **FAST)
  assert once["elements"] == twice["elements"] == sum(leaf.size for leaf in jax.tree.leaves(params))
  assert once["whole"]["fp32"]["zero"]["value"] == twice["whole"]["fp32"]["zero"]["value"]


LORA = lora.Lora(rank=2, alpha=4.0, targets=("q", "o", "down"))


@pytest.mark.long
def test_an_adapter_is_what_its_merged_model_is(models, tmp_path):
  params = start()
  adapter = jax.tree.map(
    lambda s: jnp.asarray(0.1 * np.random.default_rng(len(s)).standard_normal(s), jnp.float32),
    lora.shapes(TINY, LORA),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  lora.write(tmp_path / "adapter", TINY, LORA, adapter, "before")
  merged = lora.merge(lora.join(params, adapter), LORA.scale)
  hf.write(tmp_path / "merged", TINY, merged, pad_id=0, eos_id=1, dtype="float32")
  base = str(models / "before-float32")
  groups = ("coordinates", "spectra", "subspaces", "rotation")
  one, two = (geometry.compare(base, str(tmp_path / n), draws=1, groups=groups) for n in ("adapter", "merged"))
  assert one["after"]["kind"] == "adapter"
  for kind in ("fp32", "bf16"):
    for name, entry in one["whole"][kind].items():
      if not (
        kind == "fp32" and name == "numerical_rank"
      ):  # the merged weights are rounded to fp32, and so of full rank
        assert same(entry["value"], two["whole"][kind][name]["value"], rel=1e-3, abs=1e-3), (kind, name)
  of_q = next(t for t in one["tensors"] if t["name"] == "model.layers.0.self_attn.q_proj.weight")["kinds"]["fp32"]
  assert of_q["numerical_rank"]["value"] == pytest.approx(2 / 8)
  assert one["changed"]["fp32"] == 3 * TINY.layers


@pytest.mark.long
@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_is_what_its_export_is(tiny, tmp_path, rank):
  """A workdir, of an adapter too, is compared by its checkpoint's weights in fp32."""
  from opd_jax.analysis import exporting

  changes = {"eval.every": 0, "checkpoint.every": 1, "lora.rank": rank}
  trainer.train(small_config(tiny, "opd", steps=2, **changes), tmp_path / "run")
  exporting.export(str(tmp_path / "run"), str(tmp_path / "exported"), dtype="float32")
  run, exported = (
    geometry.compare(tiny["student"], str(tmp_path / name), draws=1, groups=()) for name in ("run", "exported")
  )
  assert (run["after"]["kind"], run["after"]["step"]) == ("adapter" if rank else "run", 2)
  assert run["whole"]["fp32"]["relative_norm"]["value"] > 0
  for name, entry in run["whole"]["fp32"].items():
    assert same(entry["value"], exported["whole"]["fp32"][name]["value"], rel=1e-5), name
  assert run["elsewhere"] == exported["elsewhere"] == []
  earlier = geometry.compare(tiny["student"], str(tmp_path / "run"), steps=(None, 1, None), draws=0, groups=())
  assert earlier["after"]["step"] == 1
  assert earlier["whole"]["fp32"]["relative_norm"]["value"] != run["whole"]["fp32"]["relative_norm"]["value"]
  if not rank:
    path = str(tmp_path / "run")
    between = geometry.compare(path, path, steps=(1, 2, None), draws=0, groups=())
    assert between["elsewhere"] == []
    assert between["whole"]["fp32"]["relative_norm"]["value"] > 0
    both = geometry.compare(tiny["student"], path, path, steps=(None, 1, 2), draws=0, groups=())
    norms = [found["whole"]["fp32"]["relative_norm"]["value"] for found in (both, earlier)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("shared_programs")
def test_a_run_that_began_with_another_model_is_noted(tiny, tmp_path, capsys):
  import shutil

  trainer.train(small_config(tiny, "opd", steps=1, **{"eval.every": 0, "checkpoint.every": 1}), tmp_path / "run")
  shutil.copytree(tiny["student"], tmp_path / "another")
  (tmp_path / "link").symlink_to(tiny["student"])
  for before, noted in (("another", True), ("link", False)):
    command = [str(tmp_path / before), str(tmp_path / "run"), "--draws=0", "--groups=", f"--out={tmp_path / 'out'}"]
    assert geometry.main(command) == 0
    sentence = f"and not with {tmp_path / before}: unless these hold the same weights"
    assert (sentence in " ".join(capsys.readouterr().out.split())) == noted
    assert (sentence in (tmp_path / "out" / "index.html").read_text()) == noted


@pytest.mark.long
def test_eight_devices_give_what_one_gives(models):
  paths = [str(models / f"{name}-float32") for name in ("before", "after")]
  one = geometry.compare(*paths, draws=1)["whole"]
  eight = json_from_eight_devices("tests.helpers.geometry_on_devices", *paths)
  assert eight["devices"] == 8
  assert eight["sharded"] > 0
  for kind, statistics in one.items():
    for name, entry in statistics.items():
      found = eight["whole"][kind][name]
      assert same(found["value"], entry["value"], rel=1e-3, abs=1e-4), (kind, name)
      assert same(found["permuted"]["draws"][0], entry["permuted"]["draws"][0], rel=1e-3, abs=1e-4), (kind, name)


@pytest.mark.long
def test_memory_is_bounded_by_blocks_and_not_by_tensors(tmp_path):
  """An embedding of 67 MB in fp32, of which a naive comparison holds six copies and more, in blocks of 1 MB."""
  # Optimised, unlike in other tests, since most of the time goes into running.
  env = {k: v for k, v in os.environ.items() if k not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")}
  command = [sys.executable, "-m", "tests.helpers.geometry_memory", str(tmp_path)]
  found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
  assert found.returncode == 0, found.stderr
  measured = json.loads(found.stdout.splitlines()[-1])
  assert measured["embedding_bytes"] >= 67e6
  assert measured["growth_bytes"] < 40e6, measured
  assert measured["sparsity"] == pytest.approx(measured["expected_sparsity"], abs=1e-6)


def broken(models, tmp_path, name, **changes):
  """A copy of a model with another config.json or fewer tensors."""
  import shutil

  shutil.copytree(models / "after-float32", tmp_path / name)
  edit(tmp_path / name, **changes)
  return str(tmp_path / name)


def test_wrong_inputs_are_refused_in_one_sentence(models, tmp_path):
  base = str(models / "before-float32")

  def refused(*names, **options) -> str:
    with pytest.raises(InputError) as e:
      geometry.compare(*names, **options)
    assert "\n" not in str(e.value)
    return str(e.value)

  assert "There is no model directory" in refused(base, str(tmp_path / "nowhere"))
  (tmp_path / "empty").mkdir()
  assert "it is not a model directory" in refused(base, str(tmp_path / "empty"))
  assert "is a file" in refused(base, str(models / "after-float32" / "config.json"))
  assert "only models of one architecture" in refused(base, broken(models, tmp_path, "llama", model_type="llama"))
  wider = decoder.dataclasses.replace(TINY, ff_width=16)
  hf.write(tmp_path / "wider", wider, randomised(wider), pad_id=0, eos_id=1)
  assert "is [8, 12] in" in (sentence := refused(base, str(tmp_path / "wider")))
  assert "[8, 16] in" in sentence
  deeper = decoder.dataclasses.replace(TINY, layers=3)
  hf.write(tmp_path / "deeper", deeper, randomised(deeper), pad_id=0, eos_id=1)
  assert "has no tensor model.layers.2" in refused(base, str(tmp_path / "deeper"))
  assert "has no tensor model.layers.2" in refused(str(tmp_path / "deeper"), base)
  (tmp_path / "adapter").mkdir()
  (tmp_path / "adapter" / lora.CONFIG).write_text('{"peft_type": "LORA"}')
  assert "is an adapter and not a model" in refused(str(tmp_path / "adapter"), base)
  assert "target_modules" in refused(base, str(tmp_path / "adapter"))
  assert "no workdir" in refused(base, base, steps=(None, 3, None))
  params = randomised(TINY)
  inf = dict(params, embed=params["embed"].at[1, 2].set(3e38))
  hf.write(tmp_path / "huge", TINY, inf, pad_id=0, eos_id=1, dtype="float32")
  assert "model.embed_tokens.weight" in refused(base, str(tmp_path / "huge"))


def test_a_page_of_draws_that_are_all_equal(models, tmp_path):
  """Their mean may round to less than each of them, and a bar from it has no length."""
  both = [str(models / f"{name}-bfloat16") for name in ("before", "after")]
  record = geometry.compare(*both, mantissa=3, draws=3, groups=())
  for statistics in record["blocks"].values():
    statistics["fp32"]["relative_norm"]["permuted"]["draws"] = [0.1, 0.1, 0.1]
  assert np.mean([0.1, 0.1, 0.1]) != 0.1
  geometry.write(record, tmp_path / "page")
  assert (tmp_path / "page" / "norms.png").is_file()


@pytest.mark.parametrize("flag", ["--mantissa=0", "--mantissa=24", "--draws=-1", "--groups=spectra,shapes"])
def test_flags_that_mean_nothing_are_refused(flag, models, capsys):
  with pytest.raises(SystemExit) as e:
    geometry.main([str(models / "before-float32"), str(models / "after-float32"), flag])
  assert e.value.code == 2
  assert flag.partition("=")[0] in capsys.readouterr().err
  assert geometry.GROUPS == measure.GROUPS


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_family_belongs_to_a_block(family, tmp_path):
  cfg = decoder.dataclasses.replace(model_directories.TINY, **FAMILIES[family])
  hf.write(tmp_path / "model", cfg, randomised(cfg), pad_id=0, eos_id=1)
  found = sources.open_source(str(tmp_path / "model"))
  assert {sources.block_of(name) for name in found.tensors} == {"attention", "MLP", "embeddings", "norms"}
  assert {sources.layer_of(name) for name in found.tensors} == {None, 0, 1}
  for name, tensor in found.tensors.items():
    if len(tensor.shape) == 2:
      whole = tensor.read(0, tensor.shape[0], 0)
      np.testing.assert_array_equal(tensor.read(1, 3, 1), whole[:, 1:3], err_msg=name)
      np.testing.assert_array_equal(tensor.read(1, 3, 0), whole[1:3], err_msg=name)
