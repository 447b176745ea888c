"""The bench on its smallest setting: that it measures what it says, not how fast anything is."""

import json

import pytest

from opd_jax import bench


@pytest.mark.parametrize("wrong", ["4x512", "axbxcxd", "0x1x1x1"])
def test_shape_that_is_none(wrong, capsys):
  assert bench.main([f"--shape={wrong}"]) == 2
  assert "four positive numbers" in capsys.readouterr().err


def test_table_and_json(tmp_path, capsys, monkeypatch):
  names = ("reverse KL, full", "sampled token (k1)")
  every = bench.objectives
  monkeypatch.setattr(bench, "objectives", lambda vocab: {n: every(vocab)[n] for n in names})
  assert bench.main(["--shape=1x8x4x32", "--repeat=1", f"--out={tmp_path / 'bench.json'}"]) == 0
  said = capsys.readouterr().out
  assert all(n in said for n in names)
  found = json.loads((tmp_path / "bench.json").read_text())["objectives"]
  assert found.keys() == set(names)
  for r in found.values():
    assert 0 < r["error"] < 1e-4, "an fp32 gradient is near the float64 one, and not equal to it"
    assert min(r["fused_seconds"], r["dense_seconds"]) > 0
