"""The study of ZPPO: hard questions with a teacher in the prompt, and a buffer of them; see `python -m opd_jax.study --help`."""
