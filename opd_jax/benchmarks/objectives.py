"""Time, memory and error of the objectives, fused against dense, on this machine.

    python -m opd_jax.bench objectives                                  rows x tokens x width x vocabulary
    python -m opd_jax.bench objectives --shape=1x64x32x512 --repeat=1   in seconds

Value and gradient by the student's hidden states and head, teacher and student of the same shape. Time is the median of
the repeats, dense and fused in turn, readings for the metrics included; memory is the temporary memory that the
compiler reports. The error is the largest deviation of a gradient from float64 over the largest entry there, on the
first 64 tokens.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from opd_jax.objectives import divergence, fused
from opd_jax.objectives.divergence import Coefficients, Objective, Readout

ERROR_TOKENS = 64


def objectives(vocab: int) -> dict[str, Objective]:
  """Every kind over the full vocabulary, and every support with the reverse KL."""
  of = lambda **o: Objective(vocab, **o)
  kinds = {
    "reverse KL": of(),
    "forward KL": of(kind="forward_kl"),
    "JSD 0.5": of(kind="jsd"),
    "mixture 0.5": of(kind="mixture"),
  }
  supports = {
    f"{side.split('_')[0]} top-16, {tail}": of(support=side, tail=tail)
    for side in ("student_topk", "teacher_topk", "both_topk")
    for tail in ("bucket", "renormalise")
  }
  return (
    {f"{name}, full": o for name, o in kinds.items()}
    | {f"reverse KL, {name}": o for name, o in supports.items()}
    | {
      "reverse KL, student top-16, reweight": of(support="student_topk", tail="reweight"),
      "JSD 0.5, student top-100, bucket": of(kind="jsd", support="student_topk", k=100),
      "sampled token (k1)": of(support="sampled"),
      "reverse KL, full, blocks of V / 8": of(vocab_chunk=max(1, vocab // 8), chunk=512),
    }
  )


def measure(o: Objective, seen: tuple, repeat: int) -> dict[str, Any]:
  """Seconds, MiB and error of one objective."""
  B, T = seen[2].shape
  c = jnp.full((B, T), 1 / (B * T), jnp.float32)
  coefficients = Coefficients(logprob=c) if o.support == "sampled" else Coefficients(c)

  def compiled(weighted: Callable):
    run = lambda student, others, c: jax.value_and_grad(lambda s: weighted(o, s, *others, c), has_aux=True)(student)
    return jax.jit(run).lower(seen[0], seen[1:], coefficients).compile()

  programs = {"fused": compiled(fused.weighted), "dense": compiled(divergence.weighted)}
  spent = {name: [] for name in programs}
  for _ in range(repeat + 1):
    for name, program in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program(seen[0], seen[1:], coefficients))
      spent[name].append(time.perf_counter() - began)
  out: dict[str, Any] = {"error": error(o, seen)}
  for name, program in programs.items():
    out[f"{name}_seconds"] = statistics.median(spent[name][1:])
    out[f"{name}_min_seconds"] = min(spent[name][1:])
    out[f"{name}_mib"] = program.memory_analysis().temp_size_in_bytes / 2**20
  return out


def error(o: Objective, seen: tuple) -> float:
  """Of the fused gradient against the dense one in float64."""
  student, (teacher,), token, mask = seen
  n = min(ERROR_TOKENS, token.shape[1])
  cut = lambda r: r._replace(hidden=r.hidden[:1, :n])
  c: Any = np.full((1, n), 1 / n)
  given = Coefficients(logprob=c) if o.support == "sampled" else Coefficients(c)

  def gradient(weighted, student, teacher, given):
    run = lambda s, *others: weighted(o, s, *others)[0]
    return jax.device_get(jax.jit(jax.grad(run))(student, (teacher,), token[:1, :n], mask[:1, :n], given))

  mine = gradient(fused.weighted, cut(student), cut(teacher), jax.tree.map(jnp.float32, given))
  with jax.enable_x64(True):
    wide = lambda r: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), cut(r))
    exact = gradient(divergence.weighted, wide(student), wide(teacher), given)
  if exact.head.dtype != np.float64:
    raise RuntimeError("the reference is not in float64")
  pairs = zip(mine, exact, strict=True)
  return max(float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()) for a, b in pairs)


def inputs(B: int, T: int, D: int, V: int) -> tuple:
  """Random readouts whose distributions are neither flat nor certain, and drawn tokens."""
  rng = np.random.default_rng(0)
  hidden = lambda: jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
  head = lambda: jnp.asarray(rng.normal(size=(V, D)) * 3 / np.sqrt(D), jnp.float32)
  token, mask = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), jnp.ones((B, T), bool)
  return Readout(hidden(), head()), (Readout(hidden(), head()),), token, mask


def show(rows: dict[str, dict[str, Any]], shape: str, console: Console | None = None) -> None:
  table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  table.add_column(f"{shape}, {jax.devices()[0].device_kind}", no_wrap=True)
  for head in (
    "gradient\nerror",
    "fused\nms",
    "dense\nms",
    "dense /\nfused",
    "fused\nMiB",
    "dense\nMiB",
    "dense /\nfused",
  ):
    table.add_column(head, justify="right", no_wrap=True)
  for name, r in rows.items():
    fused_, dense = (r["fused_seconds"], r["fused_mib"]), (r["dense_seconds"], r["dense_mib"])
    times = [f"{theirs / max(mine, 1e-9):.1f}x" for mine, theirs in zip(fused_, dense, strict=True)]
    table.add_row(
      name,
      f"{r['error']:.0e}",
      *(f"{1e3 * side[0]:,.0f}" for side in (fused_, dense)),
      times[0],
      *(f"{side[1]:,.0f}" for side in (fused_, dense)),
      times[1],
    )
  (console or Console(width=110)).print(table)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.bench objectives", description=(__doc__ or "").split("\n", 1)[0]
  )
  parser.add_argument("--shape", default="4x512x256x32768", metavar="BxTxDxV", help="rows, tokens, width, vocabulary")
  parser.add_argument("--repeat", type=int, default=3, help="timed repeats after one that warms up (3)")
  parser.add_argument("--out", metavar="FILE", help="also write the numbers as JSON")
  args = parser.parse_args(argv)
  try:
    B, T, D, V = (int(n) for n in args.shape.split("x"))
    if min(B, T, D, V, args.repeat) < 1:
      raise ValueError
  except ValueError:
    print(
      f"error: --shape={args.shape} --repeat={args.repeat}: write four positive numbers as 4x512x256x32768, and "
      "repeat at least once.",
      file=sys.stderr,
    )
    return 2
  seen = inputs(B, T, D, V)
  rows = {name: measure(o, seen, args.repeat) for name, o in objectives(V).items()}
  show(rows, args.shape)
  if args.out:
    result = {"shape": args.shape, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "objectives": rows}
    pathlib.Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
  return 0
