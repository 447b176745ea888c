"""The study of Vision-OPD: what the whole picture learns from a crop of it; see `python -m opd_jax.study --help`."""
