"""The study of d-OPSD: a masked diffusion model that is shown its own future; see `python -m opd_jax.study --help`."""
