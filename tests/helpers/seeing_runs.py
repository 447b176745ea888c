"""Short runs of models that see images, and the same on meshes of fake devices, as one JSON object of losses.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.seeing_runs MODEL SCENES DIRECTORY
"""

import json
import pathlib
import sys

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
  found = {}
  meshes = {"fsdp": {"mesh.fsdp": 4}, "tensor": {"mesh.tensor": 2}}
  meshes["tower"] = {"mesh.fsdp": 2, "mesh.tensor": 2, "vision.train": True}
  for name, mesh in meshes.items():
    path = pathlib.Path(directory) / name
    trainer.train(crop_config(model, scenes, **mesh), path)
    found[name] = [record["loss"] for record in read(path, "train")]
  print(json.dumps(found))


if __name__ == "__main__":
  main()
