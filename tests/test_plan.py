"""The planner from the command line: on this machine, and for a TPU slice where libtpu is installed."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from opd_jax import plan
from opd_jax.planning import advice, amounts, stages, topology
from opd_jax.planning.compiled import Program
from opd_jax.planning.setup import Setup, mesh_overrides

SMALL = [
  *("--config=popd", "--config.batch=4", "--config.horizon.max=24", "--config.horizon.start=8"),
  *("--config.horizon.growth=4", "--config.horizon.quantum=8", "--config.steps=6", "--prompt=8"),
  *("--config.eval.every=3", "--config.eval.prompts=4", "--config.rollout.segment=12"),
]


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory) -> list[str]:
  """The tiny models with one layer each, which compile in half the time; of a model only its sizes are needed."""
  flags = []
  for role, directory in tiny.items():
    sizes = json.loads((pathlib.Path(directory) / "config.json").read_text()) | {"num_hidden_layers": 1}
    path = tmp_path_factory.mktemp(role) / "config.json"
    path.write_text(json.dumps(sizes))
    flags.append(f"--{role}={path}")
  return flags


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[Program]]:
  """The programs that `planned` has compiled, by width."""
  return {}


@pytest.fixture(scope="module")
def planned(models, compiled, tmp_path_factory):
  out = tmp_path_factory.mktemp("plan")
  compile_stage = stages.programs

  def programs(setup: Setup, width: int) -> list[Program]:
    compiled[width] = list(compile_stage(setup, width))
    return compiled[width]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stages, "programs", programs)
    assert plan.main([*SMALL, *models, "--stages=first", f"--out={out}"]) == 0
  return out, json.loads((out / "plan.json").read_text())


def test_files_say_the_same(planned):
  out, record = planned
  assert sorted(p.name for p in out.iterdir()) == ["plan.json", "plan.md"]
  text = (out / "plan.md").read_text()
  assert "estimate from published rates, not a measurement" in text
  (target,) = record["targets"]
  for p in target["stages"][0]["programs"]:
    assert amounts.format_share(p["needs"] / target["capacity"]) in text
  verdict = target["verdict"]
  assert text.startswith(f"# {verdict['sentence']}\n")
  assert verdict["fits"]
  assert re.fullmatch(
    r"local fits: (<1|\d+)% of .*, about [\d.e-]+ s a step, [\d.e-]+ \w+ in all \(1 of \d stages were compiled\)",
    verdict["sentence"],
  )
  assert record["command"].startswith("python -m opd_jax.plan --config=popd")
  assert record["student"]["parameters"] > 0


def test_every_program_of_a_stage_is_there(planned):
  (target,) = planned[1]["targets"]
  (stage,) = target["stages"]
  assert (stage["width"], stage["first_limit"], stage["last_limit"]) == (8, 8, 8)
  programs = {p["name"]: p for p in stage["programs"]}
  assert list(programs) == ["rollout", "update", "evaluate"]
  assert programs["evaluate"]["width"] == 24
  for p in programs.values():
    assert p["fits"]
    assert p["memory"]["temporaries"] > 0
    assert p["needs"] > p["memory"]["arguments"]
    assert p["flops"] > 0
    assert p["roofline_seconds"] > 0
    assert p["sent"] == {}, "one device has nobody to send to"
    assert p["buffers"], "the largest buffers with their origin"
  assert [programs[name]["token_loops"] for name in ("rollout", "update", "evaluate")] == [1, 0, 2]
  update = programs["update"]["memory"]
  state = sum(target["resident"].values())
  assert update["arguments"] == pytest.approx(state, rel=0.1), "state, teachers, and small rollouts"
  assert update["aliased"] == pytest.approx(target["resident"]["params"] + target["resident"]["optimizer"], rel=0.01)
  assert any(b["source"] for p in programs.values() for b in p["buffers"])


def test_counted_flops_are_near_those_of_xla(planned):
  """One token in the only loop's body, so that XLA, which counts bodies once, counts less."""
  for p in planned[1]["targets"][0]["stages"][0]["programs"]:
    assert 0 < p["xla_flops"] < 3 * p["flops"]


def test_methods_side_by_side(planned):
  runs = {r["method"]: r for r in planned[1]["targets"][0]["runs"]}
  assert list(runs) == ["opd", "topd", "popd"]
  assert (runs["opd"]["last_limit"], runs["topd"]["last_limit"], runs["popd"]["first_limit"]) == (24, 2, 8)
  hours = {name: r["training_chip_hours"] for name, r in runs.items()}
  assert hours["topd"] < hours["popd"] < hours["opd"]
  assert runs["popd"]["own"]
  assert not runs["opd"]["own"]


@pytest.mark.usefixtures("planned")
def test_what_does_not_fit_gets_suggestions(models, compiled, tmp_path, monkeypatch, capsys):
  """The programs of `planned` on a machine of 60 kB."""
  this_machine = topology.get("local")
  monkeypatch.setattr(topology, "get", lambda name, slices: dataclasses.replace(this_machine, capacity=60_000))
  monkeypatch.setattr(stages, "programs", lambda setup, width: compiled[width])
  monkeypatch.setattr(advice, "GIB", 2**10)  # so that tiny savings are worth saying
  arguments = [*SMALL, *models, "--stages=first", "--config.eval.every=0", f"--out={tmp_path}"]
  assert plan.main(arguments) == 0
  said = capsys.readouterr().out
  assert said.lstrip().startswith("local does not fit: ")
  assert "DOES NOT FIT" in said
  (stage,) = json.loads((tmp_path / "plan.json").read_text())["targets"][0]["stages"]
  suggestions = [s for p in stage["programs"] for s in p["suggestions"]]
  assert any("--config.batch=" in s or "--config.micro_batch=" in s for s in suggestions)


@pytest.mark.usefixtures("planned")
def test_a_program_that_is_not_compiled_stands_first_and_in_the_status(models, compiled, monkeypatch, capsys):
  def broken(setup: Setup, width: int) -> list[Program]:
    return [
      dataclasses.replace(p, memory=None, error="INTERNAL: no") if p.name == "rollout" else p for p in compiled[width]
    ]

  monkeypatch.setattr(stages, "programs", broken)
  assert plan.main([*SMALL, *models, "--stages=first", "--config.eval.every=0"]) == 1
  first, second = capsys.readouterr().out.strip().splitlines()[:2]
  assert first == "local: rollout at 8 tokens was not compiled: INTERNAL: no"
  assert second.strip() == "local is not known to fit: 1 of 2 programs were not compiled"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology=v5e"], "not written as VERSION:AxB"),
    (["--topology=v17:4x4"], "names the TPU 'v17'" if importlib.util.find_spec("libtpu") else 'pip install "jax[tpu]"'),
    (["--topology=v5litepod-9"], "--topology=v5litepod-9 is no slice of v5e"),
    (["--mesh=fsdp:8"], "--mesh=fsdp:8 is not written as"),
    (["--mesh=fsdp=3,rows=2"], "its axes are data, fsdp"),
    (["--mesh=fsdp=3"], "does not make 1 device"),
    (["--methods=opd,grpo"], "names 'grpo'; it can name opd, topd, popd"),
    (["--stages=7"], "--stages=7 names '7'"),
    (["--student=Qwen3-9B"], "There is no model directory Qwen3-9B"),
    (["--prompt=0"], "at least 1"),
    (["--prompt=32000", "--config.horizon.max=1000"], "33000 positions"),
    (["--config.nothing=1"], "no config key 'nothing'"),
    (["--config.horizon.kind=none"], "config.horizon.kind is 'none'"),
  ],
)
def test_wrong_inputs(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    plan.main(["--config=popd", *arguments])
  assert stopped.value.code == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ")
  assert message in err
  assert err.count("\n") == 1


def test_mesh_shorthand():
  assert mesh_overrides("fsdp=8,tensor=2") == {"mesh.data": -1, "mesh.fsdp": 8, "mesh.expert": 1, "mesh.tensor": 2}
  assert mesh_overrides("fsdp=-1")["mesh.data"] == 1


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.fixture(scope="module")
def sliced(models, tmp_path_factory):
  """A tiny run on v5e:2x2, split over fsdp, and over fsdp and tensor; in a process of its own, which loads libtpu."""
  out = tmp_path_factory.mktemp("sliced")
  env = {
    k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
  }
  common = [*SMALL, *models, "--topology=v5e:2x2", "--stages=first", "--config.eval.every=0", "--methods=popd"]
  meshes = {"fsdp": "fsdp=4", "tensor": "fsdp=2,tensor=2"}
  plans = [[*common, f"--mesh={mesh}", f"--out={out / name}"] for name, mesh in meshes.items()]
  code = f"import sys; from opd_jax import plan; sys.exit(max(map(plan.main, {plans!r})))"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
  assert done.returncode == 0, done.stderr
  return {name: json.loads((out / name / "plan.json").read_text())["targets"][0] for name in meshes}


@pytest.mark.long
@needs_libtpu
def test_a_slice_that_is_not_here(sliced):
  """Memory and code of v5e; at a token without tensor parallelism nobody sends more than whether all have ended."""
  target = sliced["fsdp"]
  assert (target["chips"], target["dtype"], target["chip"]["name"]) == (4, "bfloat16", "v5e")
  assert 15 * 2**30 < target["capacity"] < 16 * 2**30
  programs = {p["name"]: p for p in target["stages"][0]["programs"]}
  for p in programs.values():
    assert p["fits"]
    assert p["memory"]["code"] > 0
    assert p["buffers"]
  assert any("all-gather over fsdp" in kind for kind in programs["rollout"]["sent"]), "weights, before the first token"
  assert sum(one["bytes"] for one in programs["rollout"]["sent_per_token"].values()) < 16
  split = next(p for p in sliced["tensor"]["stages"][0]["programs"] if p["name"] == "rollout")["sent_per_token"]
  wide = [kind for kind, one in split.items() if one["bytes"] / one["times"] > 16]
  assert wide, "each layer's two sums"
  assert all(kind.endswith("over tensor") for kind in wide), split
