"""Memory from XLA's dumps."""

from opd_jax.planning import hlo, memory
from opd_jax.planning.memory import Memory
from opd_jax.planning.sources import Sources
from tests.helpers.hlo_texts import ASSIGNMENT, LIVE_RANGES, RING


def test_a_buffer_assignment():
  """The main memory alone: an argument, one that is also an output, an output, temporaries."""
  found = memory.from_assignment(ASSIGNMENT)
  assert found == Memory(arguments=4096 + 1024, outputs=1024 + 2048, temporaries=512 + 8192, aliased=1024)
  assert found.total == 4096 + 1024 + 2048 + 512 + 8192
  assert memory.from_assignment("") is None


def test_buffers_at_the_peak_with_their_origin():
  """What a loop in a loop carries is named by what it began as, and like ones are counted together."""
  module = hlo.parse(RING)
  found = memory.buffers_at_peak(LIVE_RANGES, module, Sources(RING))
  array, line = "bf16[16,128]", "models/decoder.py:137 layer"
  counts = {(b.operation, b.source): b.count for b in found if b.array == array}
  assert counts == {
    ("qkv/dot_general", line): 1,  # of a done, what its start is named by
    ("while", line): 1,
    ("attention/kernel", line): 1,  # carried by the ring's loop, from the layer's
    ("params['embed']", ""): 2,  # the argument, and what the layers' loop carries of it
  }
  assert sum(b.total for b in found) == 20484
  assert memory.buffers_at_peak("nothing", module, Sources("")) == []


def test_a_dump_on_disk(tmp_path):
  """Of several modules the largest; other files are left alone."""
  (tmp_path / "module_0001.jit_f.cpu_after_optimizations.txt").write_text("small")
  (tmp_path / "module_0002.jit_g.after_optimizations.txt").write_text("the largest")
  (tmp_path / "module_0002.jit_g.after_optimizations-buffer-assignment.txt").write_text("assigned")
  (tmp_path / "module_0002.jit_g.before_optimizations.txt").write_text("something else, and longer")
  assert memory.read_dump(tmp_path) == {"text": "the largest", "assignment": "assigned"}
