"""Does it help a masked diffusion model to be shown its own future? The arms that ask it, after arXiv:2606.18195.

On 4 x 4 sudokus (puzzles.py): no student of countdown is there yet, since 900 steps of pre-training, 18 minutes, taught the form of its
answers and none of the arithmetic (0 of 1,024 right). Seed by seed, all arms start from the same student and read the same prompts in
the same order. A step samples `ROLLOUTS` answers, of `TRIES` to a prompt; "one-try" has one to each of the prompts, as the paper's ablation.

The canvas is filled in six denoising steps and not in ten, so that before training a third of the answers are right and six of ten problems
have a right one among four. The paper has eight tries; four of twice as many prompts give nearly twice as many answers to learn from for as many rollouts.

The paper cuts each entry of the divergence at .05 nats. That cut has no part in "d-opsd" and those that vary one thing of it, but in "long-clip"
and "code": with it the student forgets the task within 20 steps (seed 10, ten denoising steps: .418 before; at a rate of 1e-4 .004 after
60 steps, at 3e-5 .046), so that nothing could be compared. A cut entry has no gradient, and what stays of the divergence is lowest not where
student and teacher agree but where the teacher's likeliest token has 1/e of its probability; in between lies a barrier of .02 to .03 nats (of two
tokens, and a teacher at .99 or .999).

K is chosen among the masks of the block that is being filled, as the released code does, and not of the whole canvas, as the paper says ("canvas"): of the whole
canvas the teacher is surest of cells that stand in the prompt and of what follows the answer. Of the student's accepted answers before training 78% of K are such
positions, and the divergence is .003 nats where the block's K has .16 (tests/studies/diffusion/test_compared.py). Where next to nothing is
to be learned AdamW makes steps as long as ever: a seed of such arms was run, and is not counted (seed 20, before .348: d-OPSD .332, nothing revealed .320, the first third .212), which is
why seeds begin at `FIRST_SEED`.

Each of the three targets has the best rate that was tried on seed 10, before which accuracy is .375 (greedy .414), by the mean of the last three evaluations: d-OPSD
.391 (.418) at 5e-5 and .366 (.403) at 1e-4, with K of the whole canvas .367 (.382) and .327 (.348); at all masks .373 (.410) at 1e-4; fine-tuning .404 (.445) at 1e-4; the policy gradient
.365 (.378) at 3e-5. It masks no part of the prompt, where diffu-GRPO masks 15%: a sudoku without some of its cells has other solutions. With ten denoising steps, before which it is .418
(.500): .334 (.385) at 1e-4 and .379 (.450) at 3e-5 with 15% masked, .406 (.491) at 3e-5 with nothing masked; fine-tuning .468 (.546) at 1e-4, .461 (.523)
at 2e-4. The rules by which claims are judged stand in claims.py.
"""

from typing import Any

from opd_jax.studies.arm_spec import ArmSpec

STEPS = 80
LR, SAMPLES_LR, REWARD_LR = 5e-5, 1e-4, 3e-5
EVERY = 20
PROMPTS, TRIES = 32, 4
ROLLOUTS = PROMPTS * TRIES
FIRST_SEED = 21  # those before it are to calibrate on
CANVAS, BLOCK, DENOISING_STEPS = 20, 10, 6  # three or four tokens a step
SUDOKU: dict[str, Any] = {
  "student": "builtin:sudoku-student",
  "data.path": "task:sudoku",
  "data.max_prompt": 17,
  "denoising.length": CANVAS,
  "denoising.block": BLOCK,
  "horizon.max": DENOISING_STEPS,
  "batch": PROMPTS,
  "rollouts_per_prompt": TRIES,
  "steps": STEPS,
  "optimizer.lr": LR,
  "diffusion.in_block": True,
  "objective.entry_clip": 0.0,
  "sampling.temperature": 0.9,
  "eval.max_tokens": CANVAS,
  "eval.every": EVERY,
  "eval.prompts": 256,
  "eval.batch": 256,
  "eval.k": 1,
  "eval.pass_at": (1,),
  "eval.greedy": True,
  "checkpoint.every": 0,
  "log.bins": DENOISING_STEPS,
  "log.samples": 0,
  "log.tensorboard": False,
}
RHO = (0.0, 0.1, 0.25, 0.5)  # shares that are revealed; the third is the paper's
LONG: dict[str, Any] = {"steps": 2 * STEPS, "eval.every": 2 * EVERY}

ALL_MASKS = {"diffusion.compared": "all", "diffusion.in_block": False}
SAMPLES: dict[str, Any] = {"diffusion.target": "samples", "optimizer.lr": SAMPLES_LR} | ALL_MASKS
REWARD: dict[str, Any] = {"diffusion.target": "reward", "diffusion.prompt_masking": 0.0, "optimizer.lr": REWARD_LR}
CODE = {  # as the released code has it; its 20 likeliest tokens are all that there are here
  "context.reveal": "ahead",
  "diffusion.reduction": "sum",
  "diffusion.states": "unended",
  "diffusion.parts": 2,
  "objective.entry_clip": 0.05,
}
CLIP = {"objective.entry_clip": 0.05}


def truncated(steps: int) -> dict[str, Any]:
  """The first so many denoising steps are learned from."""
  return {"horizon.kind": "truncated", "horizon.ratio": steps / DENOISING_STEPS}


POPD = {
  "horizon.kind": "progressive",
  "horizon.start": 1,
  "horizon.growth": 1,
  "horizon.every": STEPS // DENOISING_STEPS,
  "horizon.quantum": 3,
}

MAIN: tuple[tuple[str, str, dict[str, Any]], ...] = (
  ("d-opsd", "d-OPSD", {}),
  ("samples", "fine-tuning on the accepted answers", SAMPLES),
  ("reward", "a policy gradient on the canvas of masks", REWARD),
  (
    "unverified",
    "fine-tuning on unverified answers",
    SAMPLES | {"diffusion.accept": "all"},
  ),
  ("all-masks", "K: all masks", ALL_MASKS),
  ("canvas", "K: of the whole canvas", {"diffusion.in_block": False}),
  ("topd-33", "the first third of the denoising steps", truncated(2)),
)
ABLATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
  *((f"rho-{100 * rho:g}", f"{100 * rho:g}% revealed", {"context.share": rho}) for rho in RHO if rho != 0.25),
  ("ahead", "revealed: from the next block on", {"context.reveal": "ahead"}),
  ("code", "as the released code", CODE),
  ("code-unclipped", "as the released code, without the clip", CODE | {"objective.entry_clip": 0.0}),
  ("prefix", "the answer behind the teacher's prompt", {"context.reveal": "prefix"}),
  ("student-k", "K: where the student committed", {"diffusion.compared": "student", "diffusion.in_block": False}),
  ("forward", "forward KL", {"objective.kind": "forward_kl"}),
  ("ema", "the teacher an average", {"teacher_update.kind": "ema"}),
  ("current", "the teacher the current student", {"teacher_update.kind": "current"}),
  ("one-try", "one try of each prompt", {"rollouts_per_prompt": 1}),
  ("unfiltered", "d-OPSD on unverified answers", {"diffusion.accept": "all"}),
  ("topd-17", "the first of six denoising steps", truncated(1)),
  ("topd-50", "the first half of the denoising steps", truncated(3)),
  ("popd", "ever more denoising steps", POPD),
  ("long", "d-OPSD, 2x the steps", LONG),
  ("long-clip", "with the clip, 2x the steps", CLIP | LONG),
)


def arm(name: str, label: str, changes: dict[str, Any], base: dict[str, Any]) -> ArmSpec:
  return ArmSpec(name, label, changes, base, "d_opsd")


ARMS: tuple[ArmSpec, ...] = (*(arm(*each, SUDOKU) for each in (*MAIN, *ABLATIONS)),)
LABELS = {each.name: each.label for each in ARMS}
SHORT = ("d-opsd", "samples", "reward", "unverified")
