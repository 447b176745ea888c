"""Accelerator types as topologies: every slice that the Cloud TPU documentation lists for them."""

import math

import pytest

from opd_jax.errors import InputError
from opd_jax.planning import accelerator_types


@pytest.mark.parametrize(
  ("name", "topology"),
  [
    ("v5litepod-1", "v5e:1x1"),
    ("v5litepod-8", "v5e:2x4"),
    ("v5e-8", "v5e:2x4"),
    ("v5litepod-256", "v5e:16x16"),
    ("v6e-32", "v6e:4x8"),
    ("v4-8", "v4:2x2x1"),
    ("v4-16", "v4:2x2x2"),
    ("v4-32", "v4:2x2x4"),
    ("v5p-64", "v5p:2x4x4"),
    ("v5p-128", "v5p:4x4x4"),
    ("v5p-1024", "v5p:8x8x8"),
    ("v5p-1536", "v5p:8x8x12"),
    ("v5p-8192", "v5p:16x16x16"),
    ("v5p-12288", "v5p:16x16x24"),
  ],
)
def test_a_type_is_the_slice_of_its_documentation(name, topology):
  assert accelerator_types.topology(name) == topology


@pytest.mark.parametrize("name", ["v5e:2x4", "v5e", "local", "v3-8", "tpu7x-8", "a100-8"])
def test_other_names_stay_as_they_are(name):
  assert accelerator_types.topology(name) == name


@pytest.mark.parametrize("name", ["v5litepod-9", "v6e-512", "v4-7", "v4-2", "v5p-22", "v5p-99998"])
def test_a_number_that_no_slice_has_is_refused_with_its_name(name):
  with pytest.raises(InputError, match=rf"^--topology={name} is no slice of v.*\.$"):
    accelerator_types.topology(name)


def test_every_slice_has_as_many_chips_as_the_name_says():
  for cores in (2**k for k in range(3, 13)):
    sides = accelerator_types.topology(f"v4-{cores}").partition(":")[2].split("x")
    assert math.prod(map(int, sides)) == cores // 2
