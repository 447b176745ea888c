"""The study of a real language model that was pruned and is healed: are full rollouts necessary? See `python -m opd_jax.study --help`."""
