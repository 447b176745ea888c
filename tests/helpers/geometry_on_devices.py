"""The script that test_geometry.py runs in a process with eight devices; it prints the statistics as JSON."""

import json
import sys

import jax

from opd_jax import geometry
from opd_jax.analysis.geometry import blocks

if __name__ == "__main__":
  sharded, place = [], blocks.place

  def counting(block, mesh):
    array = place(block, mesh)
    sharded.append(not array.sharding.is_fully_replicated)
    return array

  blocks.place = counting
  record = geometry.compare(sys.argv[1], sys.argv[2], draws=1)
  print(json.dumps({"devices": jax.device_count(), "sharded": sum(sharded), "whole": record["whole"]}))
