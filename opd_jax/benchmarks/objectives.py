"""Time, memory and error of the objectives, fused against dense, on this machine.

    python -m opd_jax.bench objectives                                  rows x tokens x width x vocabulary
    python -m opd_jax.bench objectives --shape=1x64x32x512 --repeat=1   in seconds

Value and gradient by the student's hidden states and head, teacher and student of the same shape. Time is the median of
the repeats, dense and fused in turn, statistics for the metrics included; memory is the temporary memory that the
compiler reports. The error is the largest deviation of a gradient from float64 over the largest entry there, on the
first 64 tokens.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from opd_jax.config import expanded_path
from opd_jax.errors import InputError
from opd_jax.objectives import divergence, fused
from opd_jax.objectives.divergence import Coefficients, FrozenInputs, HiddenAndHead, Objective
from opd_jax.runtime import cli

ERROR_TOKENS = 64


def objectives(vocab: int) -> dict[str, Objective]:
  """List the measured objectives by name: every kind over the full vocabulary, every support with the reverse KL."""

  def objective(**fields: Any) -> Objective:
    return Objective(vocab, **fields)

  kinds = {
    "reverse KL": objective(),
    "forward KL": objective(kind="forward_kl"),
    "JSD 0.5": objective(kind="jsd"),
    "mixture 0.5": objective(kind="mixture"),
  }
  supports = {
    f"{side.split('_')[0]} top-16, {tail}": objective(support=side, tail=tail)
    for side in ("student_topk", "teacher_topk", "both_topk")
    for tail in ("bucket", "renormalise")
  }
  return (
    {f"{name}, full": o for name, o in kinds.items()}
    | {f"reverse KL, {name}": o for name, o in supports.items()}
    | {
      "reverse KL, student top-16, reweight": objective(support="student_topk", tail="reweight"),
      "JSD 0.5, student top-100, bucket": objective(kind="jsd", support="student_topk", k=100),
      "sampled token (k1)": objective(support="sampled"),
      "reverse KL, full, blocks of V / 8": objective(vocab_chunk=max(1, vocab // 8), chunk=512),
    }
  )


def measure(o: Objective, student: HiddenAndHead, inputs: FrozenInputs, repeat: int) -> dict[str, Any]:
  """Measure the seconds, temporary MiB and gradient error of one objective, fused and dense."""
  B, T = inputs.token.shape
  coefficients = mean_of_tokens(o, jnp.full((B, T), 1 / (B * T), jnp.float32))

  def compiled(weighted_sum: Callable):
    value_and_grad = jax.value_and_grad(functools.partial(weighted_sum, o), has_aux=True)
    return jax.jit(value_and_grad).lower(student, inputs, coefficients).compile()

  programs = {"fused": compiled(fused.weighted_sum), "dense": compiled(divergence.weighted_sum)}
  spent = {name: [] for name in programs}
  for _ in range(repeat + 1):
    for name, program in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program(student, inputs, coefficients))
      spent[name].append(time.perf_counter() - began)
  result: dict[str, Any] = {"error": error(o, student, inputs)}
  for name, program in programs.items():
    result[f"{name}_seconds"] = statistics.median(spent[name][1:])
    result[f"{name}_min_seconds"] = min(spent[name][1:])
    result[f"{name}_mib"] = program.memory_analysis().temp_size_in_bytes / 2**20
  return result


def mean_of_tokens(o: Objective, weight: Any) -> Coefficients:
  """Build the coefficients of the mean over the tokens, whose weights are given, of what the objective compares."""
  return Coefficients(logprob=weight) if o.support == "sampled" else Coefficients(weight)


def error(o: Objective, student: HiddenAndHead, inputs: FrozenInputs) -> float:
  """Measure the fused gradient's largest deviation from the dense one in float64, over the largest entry there.

  Raises:
    RuntimeError: when the reference is not computed in float64.
  """
  n = min(ERROR_TOKENS, inputs.token.shape[1])
  weight = np.full((1, n), 1 / n)
  token, mask = inputs.token[:1, :n], inputs.mask[:1, :n]

  def first_tokens(model: HiddenAndHead) -> HiddenAndHead:
    return model._replace(hidden=model.hidden[:1, :n])

  def in_float64(model: HiddenAndHead) -> HiddenAndHead:
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), model)

  def gradient(weighted_sum, student, teacher, weight):
    inputs = FrozenInputs((teacher,), token, mask)

    def value(student, inputs, coefficients):
      return weighted_sum(o, student, inputs, coefficients)[0]

    return jax.device_get(jax.jit(jax.grad(value))(student, inputs, mean_of_tokens(o, weight)))

  student, teacher = first_tokens(student), first_tokens(inputs.teachers[0])
  fused_gradient = gradient(fused.weighted_sum, student, teacher, jnp.float32(weight))
  with jax.enable_x64(True):
    exact = gradient(divergence.weighted_sum, in_float64(student), in_float64(teacher), weight)
  if exact.head.dtype != np.float64:
    raise RuntimeError("the reference is not in float64")
  pairs = zip(fused_gradient, exact, strict=True)
  return max(float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()) for a, b in pairs)


def random_inputs(B: int, T: int, D: int, V: int) -> tuple[HiddenAndHead, FrozenInputs]:
  """Draw a student, a teacher whose distributions are neither flat nor certain, and tokens."""
  rng = np.random.default_rng(0)

  def hidden() -> jax.Array:
    return jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)

  def head() -> jax.Array:
    return jnp.asarray(rng.normal(size=(V, D)) * 3 / np.sqrt(D), jnp.float32)

  token, mask = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), jnp.ones((B, T), bool)
  return HiddenAndHead(hidden(), head()), FrozenInputs((HiddenAndHead(hidden(), head()),), token, mask)


def show(rows: dict[str, dict[str, Any]], shape: str, console: Console | None = None) -> None:
  """Print the table of the measurements, a row per objective."""
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
    ratio = {key: f"{r[f'dense_{key}'] / max(r[f'fused_{key}'], 1e-9):.1f}x" for key in ("seconds", "mib")}
    table.add_row(
      name,
      f"{r['error']:.0e}",
      *(f"{1e3 * r[f'{form}_seconds']:,.0f}" for form in ("fused", "dense")),
      ratio["seconds"],
      *(f"{r[f'{form}_mib']:,.0f}" for form in ("fused", "dense")),
      ratio["mib"],
    )
  (console or Console(width=110)).print(table)


def main(argv: Sequence[str] | None = None) -> int:
  """Run the command `bench objectives`; returns the process's exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.bench objectives", description=(__doc__ or "").split("\n", 1)[0]
  )
  parser.add_argument("--shape", default="4x512x256x32768", metavar="BxTxDxV", help="rows, tokens, width, vocabulary")
  parser.add_argument("--repeat", type=int, default=3, help="timed repeats after one that warms up (3)")
  parser.add_argument("--out", metavar="FILE", help="also write the numbers as JSON")
  args = parser.parse_args(argv)
  with cli.reporting_the_end():
    B, T, D, V = parse_shape(args.shape, args.repeat)
  student, inputs = random_inputs(B, T, D, V)
  rows = {name: measure(o, student, inputs, args.repeat) for name, o in objectives(V).items()}
  show(rows, args.shape)
  if args.out:
    result = {"shape": args.shape, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "objectives": rows}
    expanded_path(args.out).write_text(json.dumps(result, indent=2) + "\n")
  return 0


def parse_shape(shape: str, repeat: int) -> tuple[int, int, int, int]:
  """Parse the four sizes of --shape=BxTxDxV.

  Raises:
    InputError: when they are not four positive numbers, or `repeat` is below 1.
  """
  try:
    B, T, D, V = (int(n) for n in shape.split("x"))
  except ValueError:
    B = T = D = V = 0
  if min(B, T, D, V, repeat) < 1:
    raise InputError(
      f"--shape={shape} --repeat={repeat}: write four positive numbers as 4x512x256x32768, and repeat at least once."
    )
  return B, T, D, V
