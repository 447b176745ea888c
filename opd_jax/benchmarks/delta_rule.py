"""The gated delta rule in chunks against token after token: seconds and memory of a layer's rule by the length of the sequence.

    python -m opd_jax.bench delta-rule                              the heads of Qwen3.5-0.8B, 512 to 8192 tokens
    python -m opd_jax.bench delta-rule --tokens=64,128 --chunk=16,64 --key-width=16 --value-width=16
    python -m opd_jax.bench delta-rule --tokens=8192 --no-recurrence   3 MB a token are more than 24 GB

For value and gradient with respect to all inputs, of one row. Memory is what the compiled program allocates beside its arguments and
results.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax.models import delta_rule
from opd_jax.models.delta_rule import Inputs
from opd_jax.runtime import cli, timing


def made_up(tokens: int, heads: int, key_width: int, value_width: int) -> Inputs:
  """Draw the inputs of a row, with decays of all sizes."""
  keys = jax.random.split(jax.random.key(0), 5)
  q, k = (jax.random.normal(key, (1, tokens, heads, key_width)) for key in keys[:2])
  q, k = delta_rule.keys_and_queries(q, k, heads)
  v = jax.random.normal(keys[2], (1, tokens, heads, value_width))
  g = -jnp.exp(jax.random.uniform(keys[3], (1, tokens, heads), minval=-6.0, maxval=1.0))
  return Inputs(q, k, v, g, jax.random.uniform(keys[4], (1, tokens, heads)))


def measure(
  tokens: int, chunks: Sequence[int], heads: int, widths: tuple[int, int], repeat: int, recurrence: bool = True
) -> list[dict[str, Any]]:
  """Measure every form of the rule at one length.

  Args:
    widths: of a key and of a value.
    recurrence: measure the recurrence too.

  Returns:
    for each form its name, `seconds` (the least of the repeats), `bytes` and `error`, how far its gradient is from the first form's as a
    share of the largest number in that.
  """
  inputs = made_up(tokens, heads, *widths)
  forms: dict[str, Any] = {"recurrence": delta_rule.recurrent} if recurrence else {}
  forms |= {f"chunks of {chunk}": functools.partial(delta_rule.chunked, chunk=chunk) for chunk in chunks}

  def loss(form: Any, inputs: Inputs) -> jax.Array:
    out, state = form(inputs)
    return jnp.sum(jnp.sin(out)) + jnp.sum(state)

  programs = {
    name: jax.jit(jax.value_and_grad(functools.partial(loss, form))).lower(inputs).compile()
    for name, form in forms.items()
  }
  gradients = {name: program(inputs)[1] for name, program in programs.items()}
  first = next(iter(gradients.values()))
  largest = max(float(jnp.abs(a).max()) for a in first)
  spent = timing.interleaved({name: functools.partial(program, inputs) for name, program in programs.items()}, repeat)
  return [
    {
      "form": name,
      "tokens": tokens,
      "seconds": min(spent[name]),
      "bytes": program.memory_analysis().temp_size_in_bytes,
      "error": max(float(jnp.abs(a - b).max()) for a, b in zip(gradients[name], first, strict=True)) / largest,
    }
    for name, program in programs.items()
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a line for each form and length; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.bench delta-rule", description=(__doc__ or "").split("\n", 1)[0]
  )
  parser.add_argument("--tokens", type=_numbers, default=(512, 1024, 2048, 4096, 8192))
  parser.add_argument("--chunk", type=_numbers, default=(delta_rule.CHUNK,))
  parser.add_argument("--heads", type=int, default=16)
  parser.add_argument("--key-width", type=int, default=128)
  parser.add_argument("--value-width", type=int, default=128)
  parser.add_argument("--repeat", type=int, default=3)
  parser.add_argument("--recurrence", action=argparse.BooleanOptionalAction, default=True)
  args = parser.parse_args(argv)
  with cli.reporting_the_end():
    for tokens in args.tokens:
      for r in measure(
        tokens, args.chunk, args.heads, (args.key_width, args.value_width), args.repeat, args.recurrence
      ):
        print(
          f"{r['tokens']:6d} tokens  {r['form']:14s} {r['seconds']:8.3f} s  {r['bytes'] / 2**20:9.1f} MiB  gradient off by {r['error']:.1e}",
          flush=True,
        )
  return 0


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(",")))
