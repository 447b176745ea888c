"""A chip of round numbers, for arithmetic by hand."""

from opd_jax.planning.chips import Chip

CHIP = Chip("test", ("cpu",), flops=1e9, capacity=1e9, memory=1e8, link=1e6, host=1e6, network=1e3)
