"""Which weights a training run has moved, and how (arXiv:2606.13657): statistics of W1 - W0, each beside its nulls.

compare.py      two models, tensor by tensor, and the record that tables and pages are made of
measure.py      all statistics of one tensor, of the observed update and of every draw of its nulls
sources.py      models as named tensors: Hugging Face directories, workdirs, adapters
blocks.py       matrices in blocks of rows, that may be larger than the memory
nulls.py        rounding to fewer bits, permuted and Gaussian updates, and whether a value is beyond them
coordinates.py  sparsity, energy of the largest coordinates, masks, their coverage and overlap
spectra.py      energy of the largest singular values, ranks: exact or randomised
subspaces.py    principal subspaces of W0, projections onto them, their rotation
summary.py      statistics of many tensors: medians over matrices, and shares weighted by elements
"""
