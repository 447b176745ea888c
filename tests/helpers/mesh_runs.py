"""Trains the same short runs on meshes of one to eight fake devices and prints what they record, as one JSON object.

A process of its own, since a process cannot change its devices:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.mesh_runs STUDENT TEACHER DIRECTORY [NAME...]
"""

import json
import pathlib
import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax import config, tasks, trainer
from opd_jax.data import problems
from opd_jax.rollout import sample
from opd_jax.runtime import mesh as meshes
from tests.conftest import FEW_PROBLEMS, small_config
from tests.helpers import conversation_runs, masked_models

# Whatever sorts or gathers rows does so on each device's own.
CUT = {"rollout.segment": 8, "rollout.shrink": (2,), "micro_batch": 4, "buckets": 2}
FAR = {"mesh.teacher": "all", "teacher_offload": True}
METHODS = {
  "popd": {"horizon.start": 6, "horizon.growth": 5, "horizon.quantum": 16},
  "topd": {"horizon.ratio": 0.5, "optimizer.warmup": 0},
  "agreement": {"horizon.kind": "agreement", "horizon.start": 4, "horizon.probes": 3, "horizon.ratio": 0.0},
  "ccopd": {"horizon.max": 8, "data.max_prompt": 256},
  "moving": {"horizon.max": 8, "data.max_prompt": 256, "teacher_update.kind": "ema", "teacher_update.rate": 0.5},
  "opd": {"mixture.reward": 0.1, "rollouts_per_prompt": 2, "mixture.initial": 0.1, "optimizer.warmup": 0},
}
REWARDED = {"rollouts_per_prompt": 2, "mini_batches": 2, "surrogate.divergence": "topk_tv", "surrogate.k": 3}
METHODS["opcod"] = {
  "teacher": "initial",
  "horizon.max": 8,
  "rollouts_per_prompt": 2,
  "data.max_prompt": 16,
  "log.samples": 8,
}
METHODS["opcod"] |= {"context.max_tokens": 80, "context.widths": 0.0, "optimizer.warmup": 0}
METHODS["opcod"] |= {"codistillation.phase_steps": 1, "codistillation.gate": "always", "codistillation.validation_k": 1}
METHODS["opcod"] |= {"codistillation.validation_prompts": 8, "comment.anchor": "", "comment.max_tokens": 24}
METHODS["opcod"] |= {"comment.max_prompt": 32, "context.feedback": "always", "context.feedback_template": ">{text}"}
METHODS["opcod"] |= {"context.template": "{prompt}{solution}{feedback}="}
METHODS["d_opsd"] = {"horizon.max": 8, "eval.max_tokens": 16, "sampling.temperature": 0.9}
METHODS["graphpo"] = {"graph.widths": (2, 2), "graph.step_tokens": 6, "graph.delimiter": ",", "graph.state": "hidden"}
METHODS["graphpo"] |= {"graph.kappa": 0.5, "data.path": "task:chain", "rollouts_per_prompt": 4, "horizon.max": 12}
METHODS["summaries"] = METHODS["graphpo"] | {"graph.summary_tokens": 5, "graph.summary_template": "{prompt}{response}x"}
METHODS["summaries"] |= {"graph.summary_prompt": 40}
METHODS["zppo"] = {"data.path": "task:chain", "rollouts_per_prompt": 2, "mini_batches": 2, "zone.tau": 1.0}
METHODS["zppo"] |= {
  "zone.augment": 0.5,
  "zone.teacher_rollouts": 8,
  "candidates.max_prompt": 48,
  "candidates.max_tokens": 16,
  "zone.teacher_prompt": 16,
  "zone.teacher_function": "",
  "candidates.ncq": "{prompt}{candidates}=",
}
METHODS["dppo"] = REWARDED | {"surrogate.threshold": 1e-4, "groups.equal": "drop"}
METHODS["resample"] = METHODS["dppo"] | {"groups.equal": "resample", "groups.rounds": 3}
METHODS["masked"] = METHODS["topd"] | {"subnetwork.mask": "layer", "subnetwork.density": 0.3}
METHODS["masked"] |= {"optimizer.weight_decay": 0.1, "log.optimizer": True}
NAMED = {
  "agreement": "topd",
  "masked": "topd",
  "resample": "dppo",
  "summaries": "graphpo",
}  # the config of a method that has none of its own
RUNS = {  # name: method, devices, mesh, what else
  "popd 1": ("popd", 1, {}, {}),
  "popd data 2": ("popd", 2, {"data": 2}, {}),
  "popd fsdp 2 x tensor 2": ("popd", 4, {"fsdp": 2, "tensor": 2, "data": 1}, {"mesh.teacher": "none"}),
  "popd data 2 x fsdp 2 x tensor 2, segments and buckets": ("popd", 8, {"fsdp": 2, "tensor": 2}, CUT),
  "topd 1": ("topd", 1, {}, {}),
  "topd data 2 x tensor 4, which share heads": ("topd", 8, {"tensor": 4}, {}),
  "masked 1": ("masked", 1, {}, {}),
  "masked data 2 x fsdp 2 x tensor 2": ("masked", 8, {"fsdp": 2, "tensor": 2}, {}),
  "agreement 1": ("agreement", 1, {}, {}),
  "agreement data 2 x fsdp 2 x tensor 2": ("agreement", 8, {"fsdp": 2, "tensor": 2}, {}),
  "ccopd 1": ("ccopd", 1, {}, {}),
  "ccopd data 2 x fsdp 2 x tensor 2, adapters": ("ccopd", 8, {"fsdp": 2, "tensor": 2}, {}),
  "moving 1": ("moving", 1, {}, {}),
  "moving data 2 x fsdp 2 x tensor 2, adapters": ("moving", 8, {"fsdp": 2, "tensor": 2}, {}),
  "opcod 1": ("opcod", 1, {}, {}),
  "opcod data 2 x fsdp 2 x tensor 2": ("opcod", 8, {"fsdp": 2, "tensor": 2}, {}),
  "d_opsd 1": ("d_opsd", 1, {}, {}),
  "d_opsd data 2 x fsdp 2 x tensor 2": ("d_opsd", 8, {"fsdp": 2, "tensor": 2}, {}),
  "graphpo 1": ("graphpo", 1, {}, {}),
  "graphpo data 2 x fsdp 2 x tensor 2": ("graphpo", 8, {"fsdp": 2, "tensor": 2}, {}),
  "summaries 1": ("summaries", 1, {}, {}),
  "summaries data 2 x fsdp 2 x tensor 2": ("summaries", 8, {"fsdp": 2, "tensor": 2}, {}),
  "zppo 1": ("zppo", 1, {}, {}),
  "zppo data 2 x fsdp 2 x tensor 2": ("zppo", 8, {"fsdp": 2, "tensor": 2}, {}),
  "dppo 1": ("dppo", 1, {}, {}),
  "dppo data 2 x fsdp 2 x tensor 2": ("dppo", 8, {"fsdp": 2, "tensor": 2}, {}),
  "resample data 2": ("resample", 2, {"data": 2}, {}),
  "opd 1": ("opd", 1, {}, {}),
  "opd fsdp 4 x expert 2, teacher over all and offloaded": ("opd", 8, {"fsdp": 4, "expert": 2}, FAR),
}


NEVER = ((0, 70), (300, 301), (768, 1024))  # [first, end) of 1024 ids


def drawn() -> dict[str, list]:
  """Tokens and log-probabilities drawn from the same logits, whole and with their ids over four devices.

  Ids without a token are left out: some of one device, and all of another.
  """
  logits = 3 * jax.random.normal(jax.random.key(1), (8, 1024))
  keys = jax.random.split(jax.random.key(2), 8)
  mesh, how = meshes.make(data=2, tensor=4), sample.Sampling((), 0, 1024, temperature=0.7)
  place = NamedSharding(mesh, PartitionSpec(meshes.ROWS, "tensor"))
  draw = sample.draw_on(mesh, meshes.ROWS, "tensor")
  split = jax.jit(lambda k, x: draw(k, sample.leave_out(x, NEVER), how))
  several = split(keys, jax.device_put(logits, place))
  alone = sample.draw(keys, sample.leave_out(logits, NEVER), how)
  assert "all-gather" in str(split.lower(keys, jax.device_put(logits, place)).compile().as_text())
  return {name: [a.tolist() for a in pair] for name, pair in (("several", several), ("alone", alone))}


def main() -> None:
  student, teacher, directory, *names = sys.argv[1:]
  # Random weights never answer right, so here one whose characters add up to an even number is.
  tasks.VERIFIERS["chain"] = lambda response, answer, **_: sum(map(ord, response)) % 2 == 0
  problems.TRAIN_PROBLEMS = FEW_PROBLEMS
  out: dict = {"drawn": drawn()}
  for i, name in enumerate(names or RUNS):
    method, devices, mesh, more = RUNS[name]
    base = {"steps": 2, "batch": 8, "horizon.max": 16, "eval.every": 2, "eval.prompts": 8, "eval.batch": 8}
    base |= {"eval.temperature": 0.0, "checkpoint.every": 0, "optimizer.warmup": 1} | METHODS[method] | more
    if method in ("ccopd", "moving"):
      c = conversation_runs.small(conversation_runs.write_talker(pathlib.Path(directory) / f"talker{i}"))
    elif method == "d_opsd":
      c = masked_models.small(masked_models.write(pathlib.Path(directory) / f"masked{i}"))
    else:
      c = small_config({"student": student, "teacher": teacher}, NAMED.get(method) or method)
    if method == "opcod":
      base["codistillation.peer"] = teacher
    c = config.override(c, base | {f"mesh.{axis}": n for axis, n in mesh.items()})
    of_config = meshes.make(
      **({"data": c.mesh.data, "fsdp": c.mesh.fsdp, "expert": c.mesh.expert, "tensor": c.mesh.tensor}),
      devices=jax.devices()[:devices],
    )
    meshes.from_config = lambda _, mesh=of_config: mesh
    path = pathlib.Path(directory) / str(i)
    trainer.train(c, path)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    out[name] = {"records": records, "samples": (path / "samples.jsonl").read_text()}
  print(json.dumps(out))


if __name__ == "__main__":
  main()
