"""Makes the masked diffusion models that ship with the package: a response's tokens masked at random, and predicted.

    python -m opd_jax.tasks.pretrain_masked --task=sudoku --steps=280 --out=BEGUN
    python -m opd_jax.tasks.pretrain_masked --task=sudoku --init=BEGUN --steps=500 --lr=1.5e-3 --seed=1 --out=DIR      13 minutes on two busy cores

The loss is LLaDA's (arXiv:2502.09992): a share t of the response is masked, t uniform in (0, 1], and the negative log-probability of
what was masked is weighed by 1 / t. Responses are padded to the canvas by stop tokens, which are learned as others are. Both are written
as directories of LLaDA.
"""

import argparse
import functools
import pathlib
import random
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.models import decoder, hf
from opd_jax.tasks import puzzles

CANVAS = 20  # positions; configs/d_opsd.py fills it in blocks of 10
TASKS = {task.name: task for task in (puzzles.SUDOKU, puzzles.COUNTDOWN)}
MASK_ID = puzzles.SYMBOLS.index(puzzles.MASK)
MODEL = decoder.DecoderConfig(
  vocab=len(puzzles.SYMBOLS),
  d_model=96,
  layers=4,
  heads=4,
  kv_heads=4,
  head_width=24,
  ff_width=288,
  norm_eps=1e-5,
  max_positions=256,
  tied=False,
  causal=False,
  mask_id=MASK_ID,
  tensor_names="llada",
)


def batches(task: puzzles.Sudoku | puzzles.Countdown, rows: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield left-padded prompts int32[rows, P] and canvases int32[rows, CANVAS] of solved problems."""
  rng, ids = random.Random(f"pretrain {task.name} {seed}"), puzzles.TOKENIZER.ids
  while True:
    prompts = np.full((rows, task.max_prompt), ids[puzzles.PAD], np.int32)
    canvases = np.full((rows, CANVAS), ids[puzzles.EOS], np.int32)
    for row in range(rows):
      problem = task.problem(rng, held_out=False)
      prompts[row, task.max_prompt - len(problem.prompt) :] = puzzles.TOKENIZER.encode(problem.prompt)
      canvases[row, : len(problem.solution)] = puzzles.TOKENIZER.encode(problem.solution)
    yield prompts, canvases


def loss_of(params: decoder.Params, prompts: jax.Array, canvases: jax.Array, key: jax.Array) -> jax.Array:
  """The mean over all positions of the negative log-probability of what is masked, over the share that is."""
  of_share, of_mask = jax.random.split(key)
  share = jax.random.uniform(of_share, (len(canvases), 1), minval=1e-2)
  masked = jax.random.uniform(of_mask, canvases.shape) < share
  shown = jnp.where(masked, MASK_ID, canvases)
  pad = puzzles.TOKENIZER.ids[puzzles.PAD]
  logits = decoder.unembed(params, decoder.canvas_hidden(params, MODEL, prompts, prompts != pad, shown))
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, canvases)
  return jnp.mean(jnp.where(masked, losses, 0.0) / share)


def train(params: decoder.Params, data: Iterator, steps: int, lr: float, seed: int) -> decoder.Params:
  """Train on what `data` yields by AdamW with warm-up and cosine decay; prints the loss."""
  schedule = optax.warmup_cosine_decay_schedule(0, lr, steps // 20 + 1, steps, lr / 100)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
  state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, prompts, canvases, key):
    loss, grads = jax.value_and_grad(loss_of)(params, prompts, canvases, key)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  began, losses = time.perf_counter(), []
  for i in range(steps):
    params, state, loss = step(params, state, *next(data), jax.random.fold_in(jax.random.key(seed), i))
    losses.append(loss)
    if (i + 1) % max(1, steps // 20) == 0:
      mean, losses = float(np.mean(losses)), []
      print(f"step {i + 1:5d}/{steps}  loss {mean:.4f}  {time.perf_counter() - began:.0f} s", flush=True)
  return params


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--task", choices=sorted(TASKS), required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--init", type=pathlib.Path, help="go on from a model made before")
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--rows", type=int, default=128)
  parser.add_argument("--lr", type=float, default=2e-3)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  if args.out.exists():
    parser.error(f"{args.out} exists; name a new directory")
  params = hf.load(args.init, MODEL) if args.init else decoder.init(MODEL, jax.random.key(args.seed))
  params = train(params, batches(TASKS[args.task], args.rows, args.seed), args.steps, args.lr, args.seed)
  tokenizer = puzzles.TOKENIZER
  hf.write(
    args.out, MODEL, params, pad_id=tokenizer.ids[puzzles.PAD], eos_id=tokenizer.ids[puzzles.EOS], dtype="bfloat16"
  )
  tokenizer.save(args.out)
  print(f"wrote {args.out}")


if __name__ == "__main__":
  main()
