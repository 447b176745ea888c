"""The former name of `python -m opd_jax.make_conversations`, which it runs."""

import sys

from opd_jax.make_conversations import main

if __name__ == "__main__":
  print("opd_jax.tell is called opd_jax.make_conversations now", file=sys.stderr)
  sys.exit(main())
