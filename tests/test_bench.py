"""The bench on its smallest setting: that it measures what it says, not how fast anything is."""

import json
import math

import jax
import numpy as np
import pytest

from opd_jax import bench
from opd_jax.benchmarks import against, objectives, results, rollout
from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.config import load, override
from opd_jax.models import decoder
from opd_jax.recipes import base as recipes
from opd_jax.runtime.machine import Machine, Rate, ReadRate
from opd_jax.training import specs

LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 64,
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 48,
  "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory) -> str:
  """A config.json of a student that compiles fast."""
  path = tmp_path_factory.mktemp("one-layer") / "config.json"
  path.write_text(json.dumps(LLAMA | {"num_hidden_layers": 1}))
  return str(path)


@pytest.fixture(scope="module")
def measured(one_layer, tmp_path_factory):
  """Everything but the comparison with other libraries."""
  out = tmp_path_factory.mktemp("bench")
  sizes = ["--smallest", f"--student={one_layer}", "--batch=2", "--horizon=16", "--repeat=1"]
  assert bench.main([*sizes, f"--out={out}"]) == 0
  return out, json.loads((out / "bench.json").read_text())


def refusal(arguments: list[str], capsys) -> str:
  """What the bench prints on standard error when it refuses the arguments."""
  with pytest.raises(SystemExit) as stopped:
    bench.main(arguments)
  assert stopped.value.code == 2
  return capsys.readouterr().err


def leaves(tree, path=()):
  """Every number with the keys that lead to it."""
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from leaves(value, (*path, key))
  elif isinstance(tree, list):
    for i, value in enumerate(tree):
      yield from leaves(value, (*path, i))
  elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
    yield path, tree


def test_files_and_numbers(measured):
  out, record = measured
  assert sorted(p.name for p in out.iterdir()) == ["bench.json", "bench.txt", "prefix.png"]
  assert (out / "prefix.png").stat().st_size > 5000
  text = (out / "bench.txt").read_text()
  for part in ("rollout", "update", "step"):
    assert [r["horizon"] for r in record[part]] == [16]
    assert f"{part} 2 x (8 + 16)" in text
  for part in ("machine", "rollout", "update", "step"):
    for path, x in leaves(record[part]):
      assert math.isfinite(x), path
      if not {"seconds_per_token", "last_to_first_quarter"} & set(path):  # differences of two times
        assert x > 0, path
  for part in ("rollout", "update", "step"):
    for r in record[part]:
      assert 0 < r["fraction_of_roofline"] < 2
      assert r["min_seconds"] <= r["seconds"]
  assert record["command"].startswith("python -m opd_jax.bench --smallest")
  assert {"versions", "device_kind", "processor", "cores", "dtype"} <= record.keys()
  assert record["student"]["parameters"] > 0


def test_every_combination_of_sizes():
  cases = bench.combinations(bench.numbers("batch", "16,64,16", 1), [1, 4], [8, 9], bench.numbers("horizon", None, 32))
  assert cases == [Case(batch, prompt, 32, n) for batch in (16, 64) for n in (1, 4) for prompt in (8, 9)]
  assert [case.rows for case in cases] == [16, 16, 64, 64, 64, 64, 256, 256]
  assert [str(case) for case in cases[1:3]] == ["16 x (9 + 32)", "16 x 4 x (8 + 32)"]


@pytest.mark.long
def test_rollouts_of_each_prompt_and_prompts_of_several_lengths(one_layer, tmp_path):
  """They are the config's, unless --n gives others; the programs, the costs and every record follow."""
  sizes = ["--smallest", f"--student={one_layer}", "--batch=2", "--n=1,3", "--prompt=4,8", "--horizon=8", "--repeat=1"]
  assert bench.main([*sizes, "--config.rollouts_per_prompt=5", f"--out={tmp_path}"]) == 0
  record, text = json.loads((tmp_path / "bench.json").read_text()), (tmp_path / "bench.txt").read_text()
  for part in ("rollout", "update", "step"):
    found = [(r["n"], r["rows"], r["prompt"]) for r in record[part]]
    assert found == [(1, 2, 4), (1, 2, 8), (3, 6, 4), (3, 6, 8)]
    assert all(f"{part} {label} " in text for label in ("2 x (4 + 8)", "2 x (8 + 8)", "2 x 3 x (4 + 8)"))
  for part in ("rollout", "update"):
    one, three = (next(r["flops"] for r in record[part] if (r["n"], r["prompt"]) == (n, 8)) for n in (1, 3))
    assert one < three < 3 * one, "the prompt stands once for its rollouts"
  assert "prompts x rollouts x" in text
  assert (tmp_path / "prefix.png").stat().st_size > 5000


def test_rollouts_of_each_prompt_are_the_configs_where_none_are_given():
  subject = Subject.load(override(load("popd"), {"rollouts_per_prompt": 5}), smallest=True)
  assert subject.config(Case(2, 8, 16, 3)).rollouts_per_prompt == 3
  assert subject.responses(Case(2, 8, 16, 3)).response.shape == (6, 16)
  assert bench.numbers("n", None, subject.c.rollouts_per_prompt) == [5]


def test_a_step_is_rollout_and_update(measured):
  for r, u, s in zip(*(measured[1][part] for part in ("rollout", "update", "step")), strict=True):
    assert s["seconds"] == r["seconds"] + u["seconds"]
    assert s["tokens_per_second"] == pytest.approx(s["rows"] * s["horizon"] / s["seconds"])


def test_stretches_cover_the_rollout(measured):
  for r in measured[1]["rollout"]:
    stretches = r["by_prefix"]
    assert [s["from_token"] for s in stretches[1:]] == [s["to_token"] for s in stretches[:-1]]
    assert (stretches[0]["from_token"], stretches[-1]["to_token"]) == (1, r["horizon"])
    whole = sum(s["seconds_per_token"] * (s["to_token"] - s["from_token"]) for s in stretches)
    assert whole == pytest.approx(r["min_seconds"] - r["prefill_seconds"])
    bound = sum(s["roofline_seconds_per_token"] * (s["to_token"] - s["from_token"]) for s in stretches)
    assert 0 < bound < r["roofline_seconds"], "the prompt comes on top"


def test_quarters_of_made_up_times():
  """Tokens of the last quarter cost thrice those of the first."""
  c = load("popd")
  of = Subject.load(c, smallest=True)
  case = Case(2, 8, 16)
  rates = Machine((ReadRate(1, Rate(1e9, 1e9)),), copy=Rate(1e9, 1e9), matrix=Rate(1e9, 1e9))
  at = {limit: 1.0 + sum(1 + (t >= 12) * 2 for t in range(1, limit)) for limit in rollout.limits(16)}
  found = rollout.quarters(of, case, rates, {limit: [s, s + 1] for limit, s in at.items()})
  assert found is not None
  assert found["seconds"] == pytest.approx(3)
  sizes = [cost.bytes for cost in rollout.token_costs(of, case)]
  assert found["bytes"] == pytest.approx(np.mean(sizes[12:]) / np.mean(sizes[1:4]))
  assert rollout.quarters(of, Case(2, 8, 4), rates, {1: [1.0], 2: [2.0], 3: [3.0], 4: [4.0]}) is None


@pytest.mark.parametrize("horizon", [1, 2, 5, 100, 256])
def test_limits_begin_with_the_prompt_and_end_with_the_horizon(horizon):
  limits = rollout.limits(horizon)
  assert (limits[0], limits[-1]) == (1, horizon)
  assert limits == sorted(set(limits))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["decode"], "no benchmark 'decode'"),
    (["--batch=4,x"], "--batch=4,x is not a list"),
    (["--horizon=0"], "--horizon=0 is not a list"),
    (["--repeat=0"], "--repeat is 0"),
    (["--prompt=32000", "--horizon=1000"], "33000 positions"),
    (["--student=nowhere"], "no model directory nowhere"),
    (["--n=1,0"], "--n=1,0 is not a list"),
    (["--n=3", "--batch=4", "--config.micro_batch=5"], "config.micro_batch is 5"),
    (["--against=vllm"], "it can be transformers, trl"),
    (["--against=trl", "--config=ccopd"], "config.context.kind=same"),
    (["update", "--against=transformers"], "leave out 'update'"),
    (["--config.nothing=1"], "no config key 'nothing'"),
    (["--config.micro_batch=3", "--batch=4"], "config.micro_batch is 3"),
    (["--shape=4x512x256x32768"], "shape"),
    (["rollout", "--config=ccopd", "--config.rollout.by=teacher"], "bench update"),
  ],
)
def test_wrong_inputs(arguments, message, capsys):
  err = refusal(arguments, capsys)
  assert err.startswith("error: ")
  assert message in err
  assert err.count("\n") == 1


def test_an_out_that_is_a_file(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  assert "--out=" in refusal(["--smallest", f"--out={tmp_path / 'file'}"], capsys)


def test_without_torch(monkeypatch, capsys):
  monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: None)
  assert "pip install torch" in refusal(["--against=transformers"], capsys)


def test_a_config_json_is_enough(tmp_path):
  """In a directory, or under another name."""
  (tmp_path / "config.json").write_text(json.dumps(LLAMA))
  (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
  found = specs.architecture(str(tmp_path))
  assert found == specs.architecture(str(tmp_path / "llama.json"))
  assert (found.layers, found.head_width, found.tied) == (3, 8, False)
  c = override(load("popd"), {"student": str(tmp_path)})
  both = Subject.load(c, smallest=True)
  assert both.student == found
  assert both.teachers == (specs.SMALLEST,)


def test_a_public_model_needs_no_file(tmp_path, monkeypatch):
  """Unless there is a directory of that name."""
  assert specs.architecture("Qwen3-0.6B").layers == 28
  monkeypatch.chdir(tmp_path)
  (tmp_path / "Qwen3-0.6B").mkdir()
  (tmp_path / "Qwen3-0.6B" / "config.json").write_text(json.dumps(LLAMA))
  assert specs.architecture("Qwen3-0.6B").layers == 3


def test_an_unsupported_model_is_refused_by_its_own_name(tmp_path, capsys):
  file = tmp_path / "other.json"
  file.write_text(json.dumps(LLAMA | {"architectures": ["OtherForCausalLM"]}))
  assert f"{file}: OtherForCausalLM is not supported" in refusal([f"--student={file}"], capsys)


def test_many_sizes_make_one_picture():
  """A panel for each batch and rollouts of each prompt, a line for each prompt and horizon, and a roofline for each."""
  stretch = {"prefix": 10.0, "seconds_per_token": 1e-3, "roofline_seconds_per_token": 5e-4}
  rollouts = [
    Case(B, P, H, n).sizes | {"by_prefix": [stretch, stretch | {"prefix": 20.0}]}
    for B, n in ((2, 1), (2, 4), (8, 1))
    for P in (8, 16, 24)
    for H in (16, 32)
  ]
  figure = results.prefix_figure({"rollout": rollouts})
  assert [ax.get_title() for ax in figure.axes] == ["2 rows", "2 x 4 rows", "8 rows"]
  assert [len(ax.get_lines()) for ax in figure.axes] == [12] * 3
  measured = figure.axes[0].get_lines()[::2]
  assert len({(line.get_color(), line.get_marker()) for line in measured}) == 6, "none is drawn as another one"


@pytest.mark.long
def test_against_transformers(one_layer, tmp_path):
  pytest.importorskip("torch")
  sizes = ["--smallest", f"--student={one_layer}", "--batch=2", "--horizon=16", "--repeat=1"]
  assert bench.main(["rollout", *sizes, "--against=transformers", f"--out={tmp_path}"]) == 0
  (r,) = json.loads((tmp_path / "bench.json").read_text())["against"]
  assert r["greedy_tokens_compared"] == 32
  assert r["ratio"] == pytest.approx(r["theirs"]["seconds"] / r["ours"]["seconds"])
  assert r["theirs"]["tokens_per_second"] == pytest.approx(32 / r["theirs"]["seconds"])


@pytest.mark.parametrize("wrong", ["4x512", "axbxcxd", "0x1x1x1"])
def test_shape_that_is_none(wrong, capsys):
  assert "four positive numbers" in refusal(["objectives", f"--shape={wrong}"], capsys)


def test_objectives(tmp_path, capsys, monkeypatch):
  names = ("reverse KL, full", "sampled token (k1)")
  all_objectives = objectives.objectives
  monkeypatch.setattr(objectives, "objectives", lambda vocab: {n: all_objectives(vocab)[n] for n in names})
  assert bench.main(["objectives", "--shape=1x8x4x32", "--repeat=1", f"--out={tmp_path / 'bench.json'}"]) == 0
  printed = capsys.readouterr().out
  assert all(n in printed for n in names)
  found = json.loads((tmp_path / "bench.json").read_text())["objectives"]
  assert found.keys() == set(names)
  for r in found.values():
    assert 0 < r["error"] < 1e-4, "an fp32 gradient is near the float64 one, and not equal to it"
    assert min(r["fused_seconds"], r["dense_seconds"]) > 0


@pytest.mark.long
def test_forms_of_the_delta_rule_are_compared(capsys):
  arguments = [
    "delta-rule",
    "--tokens=9,18",
    "--chunk=4",
    "--heads=1",
    "--key-width=4",
    "--value-width=3",
    "--repeat=1",
  ]
  assert bench.main(arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[2] for line in lines] == ["recurrence", "chunks"] * 2
  assert all(float(line.split()[-1]) < 1e-5 for line in lines)


@pytest.mark.long
def test_the_error_of_int8_is_measured_against_the_dense_teacher(tiny, monkeypatch):
  pytest.importorskip("qwix")
  from opd_jax.benchmarks import int8

  monkeypatch.setattr(int8, "HORIZON", 8)
  found = int8.measure(tiny["student"], tiny["teacher"], "task:chain", prompts=4)
  assert abs(found["float32"]["kl"]) < 1e-6
  assert found["float32"]["top1"] == 1
  assert found["float32"]["moved"] == 0
  assert 1e-6 < found["int8 in float32"]["kl"] < 0.1
  assert found["int8 in float32"]["moved"] != 0


@pytest.mark.parametrize(("teacher", "models"), [("initial", 1), ("builtin:teacher", 2)])
def test_a_base_that_teaches_is_given_to_a_program_once(teacher, models):
  """An adapter's teacher is the model without it: the same arrays, and not counted twice."""
  subject = Subject.load(override(load("ccopd"), {"teacher": teacher}), smallest=True)
  one = jax.tree.leaves(decoder.shapes(subject.student), is_leaf=lambda x: isinstance(x, tuple))
  recipe = recipes.make(subject.specs)
  for frozen_models in (recipe.frozen(), recipe.abstract_frozen()):
    assert len(jax.tree.leaves(frozen_models)) == models * len(one)
    assert len(frozen_models.teacher_params) == 1
    assert (frozen_models.teacher_params[0] is frozen_models.base) == (teacher == "initial")
