"""What `python -m opd_jax.bench` measures: the machine, the rollout, the update and the objectives."""
