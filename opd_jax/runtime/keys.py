"""Random keys by named purpose, so that no two uses of one seed draw the same numbers.

A key is the run's seed folded with `use + step`. Training steps begin at 0 and the other uses lie far above any step, so
that each has a range of its own; the numbers are part of what makes a resumed run the run that never stopped.
"""

import enum

import jax


class Use(enum.IntEnum):
  """The purposes that random numbers are drawn for."""

  ROLLOUT = 0  # of a training step
  EVALUATION = 2**20
  TOKEN_MASK = 2**21  # weights.kind="random"
  GRADIENT_PROBE = 2**22
  ANALYSIS = 2**23
  ADAPTER = 2**24  # initial values of low-rank adapters
  HISTORIES = 2**25  # earlier replies of training conversations
  COMMENTS = 2**27  # of one student on another's rollouts
  BRANCHES = 2**29  # next steps of rollouts that branch, and states that are joined at random
  REVEALED = 2**29 + 2**28  # of a diffusion model's own answer to its teacher
  COORDINATE_MASK = 2**28  # subnetwork.mask, where coordinates are chosen at random
  REFORMULATED = 2**30  # rollouts of questions that are asked anew
  SPEAKER = 2**30 + 2**28  # what a teacher that writes is asked, solutions and compressions
  REPLAYED = 2**30 + 2**29  # which questions of a buffer are visited, and which leave it at random
  CANDIDATES = 2**30 + 2**29 + 2**28  # which candidates stand in a prompt, and in which order
  RESAMPLED = 2**26  # rollouts of other prompts in the place of groups without variance


def named(key: jax.Array, use: Use, step: int = 0) -> jax.Array:
  """Folds a purpose and a step into a key; of several numbers of one purpose, `step` tells them apart."""
  return jax.random.fold_in(key, use + step)


def host_seed(key: jax.Array) -> int:
  """Makes a seed of a key for random numbers on the host, one that every library takes."""
  return int(jax.random.bits(key)) >> 1


def of_seed(seed: int, use: Use, step: int = 0) -> jax.Array:
  """Makes the key of a purpose from a run's seed."""
  return named(jax.random.key(seed), use, step)
