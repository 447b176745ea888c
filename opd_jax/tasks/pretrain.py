"""Makes the student and the teacher that ship with the package: next-token prediction on solved problems.

    python -m opd_jax.tasks.pretrain --role=teacher --steps=1100 --short=900 --lr=2e-3 --out=DIR    about 8 minutes on two cores
    python -m opd_jax.tasks.pretrain --role=student --steps=650 --lr=3e-3 --out=DIR                 about 10 minutes
    python -m opd_jax.tasks.pretrain --role=student --init=opd_jax/tasks/assets/student --steps=100 --lr=1e-3 \\
        --letter-weight=30 --seed=1 --out=DIR                    phase-student, from the student; 2 minutes

    ASSETS=opd_jax/tasks/assets SHORT="--task=chain-short --lr=1e-3"      of the short tasks, 2 minutes each
    python -m opd_jax.tasks.pretrain --role=student --init=$ASSETS/student $SHORT --steps=120 --letter-weight=5 --seed=2 --out=DIR
    python -m opd_jax.tasks.pretrain --role=teacher --init=$ASSETS/teacher $SHORT --steps=150 --seed=2 --out=DIR
    python -m opd_jax.tasks.pretrain --role=teacher --init=$ASSETS/short-teacher $SHORT --steps=120 --slips=0.1 --seed=3 --out=DIR

    python -m opd_jax.tasks.pretrain --role=student --init=$ASSETS/short-student $SHORT --steps=600 --shown --seed=4 --out=DIR
                                                             short-pupil, who repeats a solution that it is shown; 5 minutes

    TALKER="--role=talker --short=400 --steps=2200 --lr=3e-3"             of the task relay, 20 minutes each
    python -m opd_jax.tasks.pretrain $TALKER --drift=0.7 --waits=0.05 --out=DIR
    python -m opd_jax.tasks.pretrain $TALKER --drift=0.3 --waits=0.2 --seed=1 --out=DIR                     talker-2

    SUMS="--task=synonyms --rows=128 --lr=2e-3"                           of the task synonyms, 6 and 8 minutes
    python -m opd_jax.tasks.pretrain --role=student $SUMS --short=300 --steps=1100 --out=DIR
    python -m opd_jax.tasks.pretrain --role=teacher --init=$ASSETS/synonyms-student $SUMS --slips=0.1 --steps=1000 --seed=1 --out=DIR

    SPECIALIST="--role=specialist --init=$ASSETS/short-pupil --steps=1000 --rows=96 --lr=2e-3"         of the task operators
    python -m opd_jax.tasks.pretrain $SPECIALIST --domain=sums --out=DIR                        17 minutes on one core each
    python -m opd_jax.tasks.pretrain $SPECIALIST --domain=differences --seed=1 --out=DIR

    python -m opd_jax.tasks.pretrain --role=student --task=countdown-4 --rows=128 --lr=2e-3 --steps=1000 --out=DIR
                                                             countdown-4-student; 15 minutes on two busy cores
    python -m opd_jax.tasks.pretrain --role=teacher --task=countdown-4 --init=$ASSETS/countdown-4-student --rows=128 --lr=1.5e-3 \\
        --steps=2500 --seed=1 --out=DIR                      countdown-4-teacher, of the student's size; 15 minutes on one core

    python -m opd_jax.tasks.pretrain --role=student --task=subset-sum --rows=128 --lr=2e-3 --steps=1200 --out=DIR
                                                             subset-student; half an hour on one busy core
    python -m opd_jax.tasks.pretrain --role=teacher --task=subset-sum --init=$ASSETS/subset-student --rows=128 --lr=1e-3 --steps=500 --out=DIR
                                                             subset-teacher, of the student's size; 10 minutes on one busy core

The teacher reads correct solutions of both tasks of a pair; the student reads solutions written by somebody with its
misconceptions. The last of the short ones, short-exact-teacher, also read solutions with slips in them, and so knows how
to go on after a mistake that is not its own. All are written as Hugging Face directories (Qwen3 architecture) and loaded
like any other model.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import random
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.models import decoder, hf
from opd_jax.tasks import chain, operators, puzzles, relay, subsets, synonyms
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

MODELS = {
  "student": decoder.DecoderConfig(
    vocab=len(chain.SYMBOLS), d_model=128, layers=2, heads=4, kv_heads=2, head_width=32, ff_width=384, qk_norm=True
  ),
  "talker": decoder.DecoderConfig(
    vocab=len(relay.SYMBOLS), d_model=128, layers=2, heads=4, kv_heads=2, head_width=32, ff_width=384, qk_norm=True
  ),
  "teacher": decoder.DecoderConfig(
    vocab=len(chain.SYMBOLS), d_model=192, layers=2, heads=6, kv_heads=2, head_width=32, ff_width=512, qk_norm=True
  ),
}
COUNTING = decoder.DecoderConfig(  # of the task countdown-4, student and teacher
  vocab=len(puzzles.SYMBOLS), d_model=128, layers=3, heads=4, kv_heads=2, head_width=32, ff_width=384, qk_norm=True
)
SUBSETS = dataclasses.replace(COUNTING, vocab=len(subsets.SYMBOLS))
ADDER = decoder.DecoderConfig(  # of the task synonyms, student and teacher
  vocab=len(synonyms.SYMBOLS), d_model=128, layers=2, heads=4, kv_heads=2, head_width=32, ff_width=384, qk_norm=True
)

MODELS["specialist"] = MODELS["student"]
PAIRS = {"chain": (chain.CHAIN, chain.PHASE), "chain-short": (chain.SHORT, chain.SHORT_PHASE)}


def batches(
  beliefs: chain.Beliefs,
  rows: int,
  seed: int,
  pair: Sequence[chain.Chain] = (chain.CHAIN, chain.PHASE),
  letter_weight: float = 1.0,
  slips: float = 0.0,
):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of both tasks in turn; only responses have weight.

  Args:
    beliefs: of the author of the solutions.
    pair: the two tasks; the second has the longer responses.
    letter_weight: loss weight of a letter; those of PHASE are two tokens among two hundred.
    slips: share of the facts that are written wrong. Wrong symbols are read and not learned, which teaches to go on
      after another's mistake.
  """
  rng = random.Random(f"pretrain {seed}")
  letters = chain.TOKENIZER.encode(chain.LETTERS)
  length = pair[1].max_prompt + pair[1].max_response
  while True:
    tokens = np.zeros((rows, length), np.int32)
    weights = np.zeros((rows, length - 1), np.float32)
    for row in range(rows):
      if slips:
        beliefs = chain.slips(rng, slips)
      problem = pair[row % 2].problem(rng, held_out=False, beliefs=beliefs)
      prompt, text = chain.TOKENIZER.encode(problem.prompt), chain.TOKENIZER.encode(problem.solution)
      both = [*prompt, *text, chain.TOKENIZER.ids[chain.EOS]]
      tokens[row, : len(both)] = both
      learned = weights[row, len(prompt) - 1 : len(both) - 1]
      learned[:] = np.where(np.isin(both[len(prompt) :], letters), letter_weight, 1)
      if slips:
        right = chain.TOKENIZER.encode(pair[row % 2].right(problem.prompt, [*problem.solution, chain.EOS]))
        learned *= np.array(both[len(prompt) :]) == right
    yield tokens, weights


def shown_batches(beliefs: chain.Beliefs, rows: int, seed: int, task: chain.Chain):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of a student that repeats a solution which it is shown.

  Every other row is a problem as the student with these beliefs solves it, and every other one "PROMPT:SOLUTION=SOLUTION", the right
  one: what a teacher reads in self-distillation (configs/opsd.py).
  """
  rng = random.Random(f"pretrain shown {seed}")
  length = task.max_prompt + 2 * task.max_response + 2

  def text(row: int) -> tuple[str, str]:
    problem = task.problem(rng, held_out=False, beliefs=chain.TRUTH if row % 2 else beliefs)
    return f"{problem.prompt}:{problem.solution}=" if row % 2 else problem.prompt, problem.solution

  while True:
    yield _filled(list(map(text, range(rows))), chain.TOKENIZER, length)


def specialist_batches(domain: str, rows: int, seed: int):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of a specialist of the task operators.

  Of ten rows three are problems as the specialist solves them, one repeats a right solution that is shown, three are comments on
  responses with slips, and three are solved with a comment shown, a third of them with a solution before it. Ten of a hundred
  comments that are shown are wrong, and the text does not follow them.
  """
  rng = random.Random(f"pretrain operators {domain} {seed}")
  own = operators.specialist(domain)
  task = operators.OPERATORS
  length = task.max_prompt + 3 * task.max_response + 4
  while True:
    yield _filled([_specialist_text(rng, row % 10, own) for row in range(rows)], chain.TOKENIZER, length)


def _specialist_text(rng: random.Random, kind: int, own: chain.Beliefs) -> tuple[str, str]:
  """Write what a specialist reads and what it answers, of ten kinds of rows."""
  task = operators.OPERATORS
  slipping = chain.slips(rng, 0.2) if kind > 3 else own  # others every time: any result may be wrong
  if kind < 3:
    problem = task.problem(rng, held_out=False, beliefs=own)
    return problem.prompt, problem.solution
  if kind < 4:
    problem = task.problem(rng, held_out=False)
    return f"{problem.prompt}:{problem.solution}=", problem.solution
  if kind < 7:
    problem = task.problem(rng, held_out=False, beliefs=slipping if rng.random() < 0.8 else own)
    return f"{problem.prompt}{problem.solution}{operators.ASK}", operators.comment(problem.solution, own)
  attempt = task.problem(rng, held_out=False, beliefs=own if kind < 9 else slipping)
  trusted = rng.random() < 0.9
  remark = operators.comment(attempt.solution, chain.TRUTH if trusted else slipping)
  beliefs = operators.convinced(own, remark) if trusted else own
  answer = task.solution(rng, attempt.prompt, beliefs)
  right = task.solution(rng, attempt.prompt, chain.TRUTH)
  shown = f":{right}" if rng.random() < 1 / 3 else ""
  hint = remark.replace(operators.MARK, "")
  return f"{attempt.prompt}{shown}{operators.MARK}{hint}=", right if shown else answer


def conversation_batches(rows: int, seed: int, drift: float, waits: float, short: int):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of relay's conversations.

  Batches of problems that are told at once and of RAW alternate, since RAW is twice as long.

  Args:
    drift, waits: see `relay.transcript`.
    short: the number of batches, which come first, of short problems that are told at once.
  """
  easy = _padded(2 * rows, 64, relay.corpus(2 * rows, seed, 0.0, 0.0, ("full", "full", "concat"), max_facts=4))
  at_once = _padded(2 * rows, 96, relay.corpus(2 * rows, seed, drift, waits, relay.TOLD_AT_ONCE))
  in_turns = _padded(rows, 208, relay.corpus(rows, seed, drift, waits, ("raw",)))
  yield from itertools.islice(easy, short)
  for both in zip(at_once, in_turns, strict=False):
    yield from both


def synonym_batches(beliefs: chain.Beliefs, rows: int, seed: int, plain: int, slips: float = 0.0):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of running sums; only responses have weight.

  Args:
    plain: the number of batches, which come first, that are written with one word for each digit.
    slips: share of the sums that are written wrong; these are read and not learned, see `batches`.
  """
  rng = random.Random(f"pretrain synonyms {seed}")
  for batch in itertools.count():
    task = dataclasses.replace(synonyms.RUNNING_SUMS, words=1 if batch < plain else synonyms.SYNONYMS)
    tokens = np.zeros((rows, task.max_prompt + task.max_response), np.int32)
    weights = np.zeros((rows, task.max_prompt + task.max_response - 1), np.float32)
    for row in range(rows):
      problem = task.problem(rng, held_out=False, beliefs=synonyms.slips(rng, slips) if slips else beliefs)
      response = [*problem.solution, synonyms.EOS]
      tokens[row] = synonyms.TOKENIZER.encode([*problem.prompt, *response])
      weights[row, task.max_prompt - 1 :] = 1
      if slips:
        meant = [synonyms.MEANING.get(symbol, symbol) for symbol in response]
        weights[row, task.max_prompt - 1 :] = np.array(meant) == task.right(problem.prompt, response)
    yield tokens, weights


def solved_batches(task: puzzles.CountdownOfFour | subsets.SubsetSum, tokenizer: CharTokenizer, rows: int, seed: str):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of problems with their solutions; only these have weight.

  Args:
    seed: of the problems, any text.
  """
  rng, length = random.Random(seed), task.max_prompt + task.max_response
  while True:
    problems = [task.problem(rng, held_out=False) for _ in range(rows)]
    yield _filled([(problem.prompt, problem.solution) for problem in problems], tokenizer, length)


def subset_batches(rows: int, seed: int):
  """Yield tokens int32[rows, T + 1] and loss weights f32[rows, T] of subset sums; only responses have weight.

  Batches of problems alternate with batches of half as many rows, whose prompts have candidates, wrong ones or the beginning of a solution
  behind the problem: what is read there is never learned to be right or wrong. Of two candidates, one right and one wrong, the
  response repeats either as often; behind wrong ones it is another guess; and it follows a beginning half of the time.
  """
  rng, task = random.Random(f"pretrain subsets {seed}"), subsets.SUBSETS

  def text(wide: int, row: int) -> tuple[str, str]:
    problem = task.problem(rng, held_out=False)
    response = _guessed(rng, problem)
    more, response = _with_candidates(rng, row % 4, problem, response) if wide else ("", response)
    return problem.prompt + more, response

  for batch in itertools.count():
    wide = batch % 2
    length = task.max_prompt + (2 * task.max_response + 2 if wide else 0) + task.max_response
    yield _filled([text(wide, row) for row in range(rows // (1 + wide))], subsets.TOKENIZER, length)


SEEN = {
  "easy": 3,
  "medium": 2,
}  # how far before the end the author of the responses sees what adds up; elsewhere it guesses


def _guessed(rng: random.Random, problem: Problem) -> str:
  """Write the response of somebody who solves small problems more often than large ones."""
  numbers, goal = subsets.read(problem.prompt)
  sees = SEEN.get(problem.domain)
  return subsets.guess(rng, numbers) if sees is None else subsets.solve(rng, numbers, goal, sees)


def _with_candidates(rng: random.Random, kind: int, problem: Problem, response: str) -> tuple[str, str]:
  """Write what stands behind a problem, and the response to that: two candidates, wrong ones (the same, so that both are as frequent), a beginning."""
  numbers, goal = subsets.read(problem.prompt)
  if kind == 3:
    beginning = problem.solution[: int(0.4 * len(problem.solution))]  # of tokens, as config.zone.share
    on = subsets.guess(rng, numbers, beginning)
    return f"/{beginning}=", on if rng.random() < 0.5 else response
  wrong = [subsets.wrong(rng, numbers, goal) for _ in range(2)]
  if kind == 2:
    return "".join(f":{text}" for text in wrong[: rng.randint(1, 2)]) + "!=", response
  shown = [problem.solution, wrong[0]]
  rng.shuffle(shown)
  return "".join(f":{text}" for text in shown) + "=", rng.choice(shown)


def _filled(texts: Sequence[tuple[str, str]], tokenizer: CharTokenizer, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Lay out prompts with their responses in rows of `length` tokens; only the responses have weight, and what ends them."""
  tokens, weights = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length - 1), np.float32)
  for row, (prompt, response) in enumerate(texts):
    ids = tokenizer.encode([*prompt, *response, tokenizer.eos])
    tokens[row, : len(ids)] = ids
    weights[row, len(prompt) - 1 : len(ids) - 1] = 1
  return tokens, weights


def _padded(rows: int, length: int, corpus):
  """Pad the rows of a corpus, or cut their end, to `length` + 1 tokens; only learned tokens have weight."""
  for ids, learned in corpus:
    tokens = np.zeros((rows, length + 1), np.int32)
    weights = np.zeros((rows, length), np.float32)
    for row, (row_ids, row_learned) in enumerate(zip(ids, learned, strict=True)):
      n = min(len(row_ids), length + 1)
      tokens[row, :n] = row_ids[:n]
      weights[row, : n - 1] = row_learned[1:n]
    yield tokens, weights


def train(cfg: decoder.DecoderConfig, params: decoder.Params, data, steps: int, lr: float) -> decoder.Params:
  """Train on what `data` yields by AdamW with warm-up and cosine decay; prints the loss."""
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.warmup_cosine_decay_schedule(0, lr, steps // 20 + 1, steps, lr / 100), weight_decay=0.01),
  )
  state = optimizer.init(params)

  def loss_of(params, tokens, weights):
    x = decoder.hidden(params, cfg, tokens[:, :-1], jnp.ones_like(tokens[:, :-1], bool))
    losses = optax.softmax_cross_entropy_with_integer_labels(decoder.unembed(params, x), tokens[:, 1:])
    return jnp.sum(losses * weights) / jnp.sum(weights)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, tokens, weights):
    loss, grads = jax.value_and_grad(loss_of)(params, tokens, weights)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  began = time.perf_counter()
  for i in range(steps):
    params, state, loss = step(params, state, *next(data))
    if (i + 1) % max(1, steps // 20) == 0:
      print(f"step {i + 1:5d}/{steps}  loss {float(loss):.4f}  {time.perf_counter() - began:.0f} s", flush=True)
  return params


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--role", choices=sorted(MODELS), required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--init", type=pathlib.Path, help="go on from a model made before")
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument(
    "--short",
    type=int,
    default=0,
    help="so many of the steps, the first, on problems of 1 to 3 rounds; of the talker, on those told at once; of synonyms, with one word a digit",
  )
  parser.add_argument(
    "--task",
    choices=[*sorted(PAIRS), synonyms.RUNNING_SUMS.name, puzzles.COUNTDOWN_4.name, subsets.SUBSETS.name],
    default="chain",
    help="with its twin (chain)",
  )
  parser.add_argument("--slips", type=float, default=0.0, help="share of the facts that the text shows wrong")
  parser.add_argument(
    "--shown", action="store_true", help="of the student: half of the problems with their solution shown"
  )
  parser.add_argument("--domain", choices=sorted(operators.DOMAINS), help="of the specialist: the one that it knows")
  parser.add_argument("--drift", type=float, default=0.7, help="of the talker: last replies that fall back on a guess")
  parser.add_argument(
    "--waits", type=float, default=0.05, help="of the talker: conversations in which it does not guess"
  )
  parser.add_argument("--letter-weight", type=float, default=1.0, help="loss weight of the letters of PHASE")
  parser.add_argument("--rows", type=int, default=32)
  parser.add_argument("--lr", type=float, default=3e-3)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()

  if args.slips and args.role == "student":
    parser.error("--slips is for a teacher; a student reads what its own misconceptions write")
  if (args.role == "specialist") != bool(args.domain):
    parser.error("--domain is of a specialist, which needs one")
  if args.out.exists():
    parser.error(f"{args.out} exists; name a new directory")
  cfg, task = MODELS[args.role], relay if args.role == "talker" else chain
  beliefs = chain.misconceptions() if args.role == "student" else chain.TRUTH
  if args.role == "talker":
    data = conversation_batches(args.rows, args.seed, args.drift, args.waits, args.short)
  elif args.role == "specialist":
    data = specialist_batches(args.domain, args.rows, args.seed)
  elif args.task == synonyms.RUNNING_SUMS.name:
    cfg, task = ADDER, synonyms
    beliefs = synonyms.misconceptions() if args.role == "student" else chain.TRUTH
    data = synonym_batches(beliefs, args.rows, args.seed, args.short, args.slips)
  elif args.task == puzzles.COUNTDOWN_4.name:
    cfg, task = COUNTING, puzzles
    data = solved_batches(puzzles.COUNTDOWN_4, puzzles.TOKENIZER, args.rows, f"pretrain countdown {args.seed}")
  elif args.task == subsets.SUBSETS.name:
    cfg, task, data = SUBSETS, subsets, subset_batches(args.rows, args.seed)
    if args.role == "teacher":
      data = solved_batches(subsets.SUBSETS, subsets.TOKENIZER, args.rows, f"pretrain solved subsets {args.seed}")
  elif args.shown:
    data = shown_batches(beliefs, args.rows, args.seed, PAIRS[args.task][0])
  else:
    pair = PAIRS[args.task]
    data = batches(beliefs, args.rows, args.seed, pair, args.letter_weight, args.slips)
    if args.short:
      short_pair = [dataclasses.replace(task, rounds=(1, 3)) for task in pair]
      short_batches = batches(beliefs, args.rows, args.seed, short_pair)
      data = itertools.chain(itertools.islice(short_batches, args.short), data)
  params = hf.load(args.init, cfg) if args.init else decoder.init(cfg, jax.random.key(args.seed))
  params = train(cfg, params, data, args.steps, args.lr)
  tokenizer = task.TOKENIZER
  pad_id, eos_id = tokenizer.ids[tokenizer.pad], tokenizer.ids[tokenizer.eos]
  hf.write(args.out, cfg, params, like=None, pad_id=pad_id, eos_id=eos_id, dtype="bfloat16")
  tokenizer.save(args.out)
  print(f"wrote {args.out}")


if __name__ == "__main__":
  main()
