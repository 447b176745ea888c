"""The study of GraphPO: what a graph of equal states adds to a tree, and a tree to chains; see `python -m opd_jax.study --help`."""
