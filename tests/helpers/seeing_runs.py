"""Short runs of models that see images, and the same on meshes of fake devices, as one JSON object of losses and of how a tower lies.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.seeing_runs MODEL SCENES DIRECTORY
"""

import json
import pathlib
import sys

import jax

from opd_jax import config as configs
from opd_jax import trainer
from tests.helpers.runs import read

SIZES = {
  "batch": 8,
  "steps": 3,
  "horizon.max": 6,
  "optimizer.lr": 1e-2,
  "eval.every": 0,
  "checkpoint.every": 1,
  "checkpoint.keep": 9,
  "log.tensorboard": False,
  "log.bins": 3,
  "compile_cache": "off",
}
IMAGES = {"data.image_field": "image", "data.box_field": "box", "data.widths": 0.0, "data.verifier": "exact"}


def crop_config(model, scenes, **changes):
  """Vision-OPD of a small model on these scenes."""
  named = {"student": str(model), "data.path": str(scenes), "teacher": "initial", "context.kind": "crop"}
  return configs.override(configs.default("self_distillation"), SIZES | IMAGES | named | changes)


def opd_config(model, scenes, teacher="initial", **changes):
  named = {"student": str(model), "data.path": str(scenes), "teacher": str(teacher)}
  return configs.override(configs.default("opd"), SIZES | IMAGES | named | changes)


def main():
  model, scenes, directory = sys.argv[1:]
  losses, run = {}, None
  meshes = {"fsdp": {"mesh.fsdp": 4}, "tensor": {"mesh.tensor": 2}}
  meshes["tower"] = {"mesh.fsdp": 2, "mesh.tensor": 2, "vision.train": True}
  for name, mesh in meshes.items():
    path = pathlib.Path(directory) / name
    run = trainer.train(crop_config(model, scenes, **mesh), path)
    losses[name] = [record["loss"] for record in read(path, "train")]
  assert run is not None
  print(json.dumps({"losses": losses, "tower": shares(run.state)}))


def shares(state) -> dict[str, float]:
  """What one device holds of every array of the tower, in a train state's parameters and moments."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
    name = jax.tree_util.keystr(path)
    if "'vision'" in name:
      found[name] = leaf.addressable_shards[0].data.size / leaf.size
  return found


if __name__ == "__main__":
  main()
