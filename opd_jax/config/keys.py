"""The table of every key that all methods have: its default, what it means, and the values that it may have.

A recipe declares its own keys the same way, as a literal KEYS (recipes.py). The table is what `default()` makes a config of, what
`check` holds every config against, what --help prints and what docs/configuration.md lists. The notation of the values is
explained in allowed.py; a tuple is what the default is.

The bounds above are what no run means: beyond them a start takes hours, or a count no longer fits its 32 bits.
"""

from typing import Any

from opd_jax.config.data_keys import DATA

KEYS: dict[str, tuple[Any, str, str]] = {
  "recipe": ("opd", "the method: a file of opd_jax/recipes, or the dotted path of a module", "text"),
  "steps": (100, "rollout batches", "[1, 10**6]"),
  "seed": (0, "of the order of prompts and of sampling, in training and in evaluation", "[-2**31, 2**32)"),
  "student": ("builtin:student", "a Hugging Face directory, or builtin:NAME", "path"),
  "teacher": (
    "builtin:teacher",
    'or "initial": the student as it was before training; "": none, where the loss asks no teacher',
    "path",
  ),
  "teachers": ((), "several teachers, instead of `teacher`; together they are one mixed distribution", "paths"),
  "teacher_precision": (
    "compute",
    "of the teachers' weights: compute (as `precision`), int8 (less memory, needs qwix)",
    "one of compute, int8",
  ),
  "teacher_offload": (False, "keep teachers in host memory between updates", "True or False"),
  "teacher_weights": (
    (),
    "of the mixture, one per teacher; (): equal. See data.teacher_field for one per example",
    "numbers in [0, 10**6]",
  ),
  "teacher_update.kind": (
    "frozen",
    "with teacher=initial: the teacher stays; follows the student as a moving average (ema); is the student (current); or mixes the logits "
    "of the initial and the current student (mix)",
    "one of frozen, ema, current, mix",
  ),
  "teacher_update.rate": (
    0.05,
    "of ema, per update that moved the weights; of mix, the current student's share",
    "[0, 1]",
  ),
  "allow_mismatch": (
    (),
    "differences between student and teacher that are intended",
    "some of tokenizer, eos, chat_template",
  ),
  # low-rank adapters, models/lora.py
  "lora.rank": (0, "0: all weights are trained", "[0, 2**16]"),
  "lora.alpha": (32.0, "A B counts alpha / rank", "(0, 10**6]"),
  "lora.targets": (
    ("q", "k", "v", "o", "gate", "up", "down"),
    "the layers' matrices that have one; delta_* are of layers of the gated delta rule",
    "some of q, k, v, o, gate, up, down, delta_qkv, delta_gate, delta_rate, delta_decay, delta_out",
  ),
  "lora.path": ("", "a PEFT directory to begin with; its rank, alpha and targets count", "path"),
  "vision.train": (
    False,
    "train the vision tower too; False: it stays, and each image is encoded once",
    "True or False",
  ),
  # which coordinates of the weights move, training/subnetwork.py
  "subnetwork.mask": (
    "none",
    "the coordinates that are trained: all (none); those that another run moved visibly (visible) or most (top); or as many of the smallest "
    "of each tensor (lowest), or random ones: so many of each magnitude (stratified), layer, tensor, or of all (global)",
    "one of none, visible, top, lowest, stratified, layer, tensor, global",
  ),
  "subnetwork.mask_from": (
    "",
    "the other run: a workdir, or a Hugging Face directory that was trained from `student`; read at the first start alone",
    "path",
  ),
  "subnetwork.density": (0.0, "share of the coordinates that is trained; 0: what is visible of mask_from", "[0, 1]"),
  "subnetwork.threshold": (
    1e-5,
    "a coordinate moved visibly where it moved by more than this, once rounded",
    "[0, 10**6]",
  ),
  "subnetwork.mantissa": (7, "bits of the mantissa to which it is rounded before; 7: bfloat16, 23: float32", "[1, 23]"),
  "subnetwork.embeddings": (
    "masked",
    "embedding and output head: masked as all others, trained or frozen as a whole",
    "one of masked, trained, frozen",
  ),
  "subnetwork.norms": ("masked", "likewise norms and biases", "one of masked, trained, frozen"),
  # what each side reads
  "context.kind": (
    "same",
    "same; canonical (recipe ccopd): the student a conversation, the teacher everything at once",
    "one of same, canonical",
  ),
  # how much is trained
  "batch": (32, "prompts per step", "[1, 2**20]"),
  "rollouts_per_prompt": (1, "responses to each prompt of a step", "[1, 2**16]"),
  "updates_per_rollout": (1, "passes over each rollout batch, of an optimiser update for each mini-batch", "[1, 1000]"),
  "mini_batches": (1, "disjoint parts of the prompts of a step, each with its rollouts: an update each", "[1, 2**20]"),
  "micro_batch": (
    0,
    "rows per gradient-accumulation slice, at least one for each row shard; 0: all rows at once",
    "[0, 2**31)",
  ),
  "buckets": (1, "response widths of an update: each slice runs at the least that holds its longest row", "[1, 1000]"),
  **DATA,
  # how long the student speaks, horizon/
  "horizon.kind": (
    "full",
    "a schedule: full, truncated, progressive, geometric; or chosen while training: agreement, drift, saturation, look",
    "one of full, truncated, progressive, geometric, agreement, drift, saturation, look",
  ),
  "horizon.max": (256, "T: the longest rollout, tokens", "[1, 2**24]"),
  "horizon.length": (0, "truncated: tokens; 0: use ratio", "[0, 2**24]"),
  "horizon.ratio": (0.0, "truncated: fraction of max; 0: use length", "[0, 1]"),
  "horizon.start": (
    0,
    "progressive, geometric: H_0, tokens; chosen ones: the shortest width, from which they double",
    "[0, 2**24]",
  ),
  "horizon.growth": (0, "progressive: dH, tokens", "[0, 2**24]"),
  "horizon.factor": (0.0, "geometric: H_k+dk over H_k", "0 or (1, 10**6]"),
  "horizon.every": (
    1,
    "steps: progressive, geometric: dk; agreement: between probes; look: between looks",
    "[1, 10**9]",
  ),
  "horizon.quantum": (64, "progressive, geometric: compiled widths are multiples of this (and max)", "[1, 2**24]"),
  "horizon.widths": (
    (),
    "chosen ones: the compiled widths below max, tokens; (): doubled from start",
    "whole numbers in [1, 2**24]",
  ),
  "horizon.threshold": (
    0.0,
    "chosen ones: of the cosine, the overlap or the gap, the ratio; 0: the rule's own",
    "[0, 10**6]",
  ),
  "horizon.measure": (
    "overlap",
    "drift: of the top log.overlap_k; or gap, the divergence summed over positions",
    "one of overlap, gap",
  ),
  "horizon.window": (8, "saturation: steps", "[2, 10**6]"),
  "horizon.probes": (8, "agreement: prompts that a probe answers to full length", "[1, 2**20]"),
  "sampling.temperature": (1.0, "of the rollouts", "[10**-6, 1000]"),
  "sampling.top_p": (1.0, "below 1, and top_k above 0, the rollout is no longer on-policy", "[10**-6, 1]"),
  "sampling.top_k": (0, "0: off", "[0, 2**24]"),
  # how the token loop is cut, rollout/segments.py
  "rollout.by": (
    "student",
    "who writes responses; off-policy baselines: teacher (to its own prompts), data (data.solution_field)",
    "one of student, teacher, data",
  ),
  "rollout.precision": (
    "compute",
    "the weights that write rollouts are rounded to it, and computed with as `precision` says: nothing is faster for it",
    "one of compute, bfloat16, float8, int8",
  ),
  "rollout.segment": (
    64,
    "tokens, at least, between two growths of the cache; 0: the whole cache from the beginning",
    "[0, 2**24]",
  ),
  "rollout.segments": (8, "at most; each is compiled", "[1, 1000]"),
  "rollout.shrink": (
    (),
    "divisors of the batch, such as (2, 4): gather the rows that have not ended into 1/2, 1/4, ... of it",
    "whole numbers in [2, 2**20]",
  ),
  "rollout.ahead": (
    False,
    "sample step k+1 while step k is verified: one update off-policy, importance-weighted",
    "True or False",
  ),
  # the distance between student and teacher at a token, objectives/divergence.py
  "objective.kind": (
    "reverse_kl",
    "reverse_kl, forward_kl, jsd, mixture (of the two KLs), proximal (reverse KL to beta t + (1 - beta) s: TOP-D); "
    "suppress: a control without a teacher, support sampled",
    "one of reverse_kl, forward_kl, jsd, mixture, proximal, suppress",
  ),
  "objective.support": (
    "full",
    "the tokens that are compared",
    "one of full, student_topk, teacher_topk, both_topk, sampled",
  ),
  "objective.k": (16, "of the top-k supports", "[1, 2**24]"),
  "objective.tail": (
    "bucket",
    "what a top-k leaves out: bucket, renormalise, reweight (the paper's runs)",
    "one of bucket, renormalise, reweight",
  ),
  "objective.beta": (0.5, "jsd, proximal: the teacher's share of the mean; mixture: the reverse KL's", "[0, 1]"),
  "objective.normalised": (
    False,
    "jsd divided by beta (1 - beta), so that it meets the two KLs at 0 and 1",
    "True or False",
  ),
  "objective.student_temperature": (1.0, "of the student's distribution in the divergence", "[10**-6, 1000]"),
  "objective.teacher_temperature": (1.0, "of the teacher's distribution in the divergence", "[10**-6, 1000]"),
  "objective.entry_clip": (0.0, "largest entry of a divergence, nats; 0: off", "[0, 10**6]"),
  "objective.token_clip": (
    0.0,
    "largest divergence of a token, or |log-ratio| of a drawn one, nats; 0: off",
    "[0, 10**6]",
  ),
  "objective.estimator": (
    "auto",
    "sampled: k1 (policy gradient), k2, k3, nll (see rollout.by); auto: k1, forward KL k3",
    "text",
  ),
  "objective.discount": (0.0, "sampled k1: 0 token level, 1 sequence level", "[0, 1]"),
  "objective.future": (
    "discounted",
    "sampled k1: how later tokens' log-ratios count: discounted, mean (of them, TOP-D)",
    "one of discounted, mean",
  ),
  "objective.standardise": (
    False,
    "sampled k1: advantages as standard scores over the tokens of a prompt's rollouts (TOP-D)",
    "True or False",
  ),
  "objective.advantage": (-0.5, "suppress: of every chosen token, see weights.kind=rare", "[-1000, 1000]"),
  "objective.entropy_advantage": (
    0.0,
    "suppress: besides, from the row's chosen token of the least entropy to that of the most; OPSA: -0.5",
    "[-1000, 1000]",
  ),
  "objective.shuffle_teacher": (
    False,
    "a control: every token is compared with what the teacher predicts at another one of the batch",
    "True or False",
  ),
  "objective.normaliser": (
    "token",
    'mean over tokens of the batch, over rows of means ("sequence"), over a "constant"',
    "one of token, sequence, constant",
  ),
  "objective.constant": (0, "tokens per row; 0: horizon.max", "[0, 2**24]"),
  "objective.chunk": (
    0,
    "tokens per chunk of logits; 0: as many as measured well, see objectives/fused.py",
    "[0, 2**24]",
  ),
  "objective.vocab_chunk": (
    0,
    "ids per block of the vocabulary, without log.overlap_k; 0: all at once",
    "[0, 2**24]",
  ),
  # how much each token's distance counts, objectives/token_weights.py
  "weights.kind": (
    "uniform",
    "which tokens count, and how much",
    "one of uniform, first, last, segment, random, rare, common, linear, rising, gap, student_entropy, teacher_entropy",
  ),
  "weights.tokens": (0, "first, last, segment, random: how many tokens of each row", "[0, 2**24]"),
  "weights.fraction": (0.2, "rare, common: the share of the tokens, the least likely ones, that is rare", "[0, 1]"),
  "weights.scope": ("row", "rare, common: ranked within a row or over the batch", "one of row, batch"),
  "weights.start": (0, "segment: first position, from 0", "[0, 2**24]"),
  "weights.end": (0.0, "linear: the weight at horizon.max", "[0, 10**6]"),
  "weights.gamma": (0.5, "gap: the first token counts 1 + gamma", "[0, 10**6]"),
  "weights.mean_one": (False, "weights divided by their mean over the row: no change of step size", "True or False"),
  # for rollouts that the student of another update wrote, objectives/kl_estimators.py
  "importance.kind": (
    "auto",
    "auto: truncated where rollouts are not the student's",
    "one of auto, none, truncated, masked",
  ),
  "importance.level": ("token", "whose probability ratio", "one of token, prefix, sequence"),
  "importance.cap": (2.0, "largest importance weight", "(0, 10**6]"),
  # coefficients of the loss's terms, objectives/loss.py
  "mixture.divergence": (1.0, "the distance between student and teacher", "[0, 10**6]"),
  "mixture.reward": (0.0, "policy gradient of the verifier's verdict, group-relative", "[0, 10**6]"),
  "mixture.initial": (0.0, "KL(student || student before training), full vocabulary", "[0, 10**6]"),
  "mixture.reward_std": (
    False,
    "divide group-relative advantages by the group's standard deviation",
    "True or False",
  ),
  "advantage.kind": (
    "auto",
    "of the reward, objectives/advantage.py; auto: group, or group_std with mixture.reward_std",
    "one of auto, group, group_std, leave_one_out, reinforce_pp, reinforce_pp_nontrivial",
  ),
  # how a policy gradient is held near the policy that drew its tokens, objectives/surrogates.py
  "surrogate.kind": (
    "importance",
    "importance: advantages times the weights of importance.*; or a surrogate",
    "one of importance, is, truncated, ppo_clip, dppo, spo, drpo, mask_drpo, kl, k3, tv",
  ),
  "surrogate.threshold": (
    0.15,
    "dppo, drpo, kl, k3, tv: delta, of a token's probability (of dppo's divergence); spo: of its ratio",
    "(0, 10**6]",
  ),
  "surrogate.clip_low": (0.2, "ppo_clip: the ratio is cut below 1 - this", "[0, 1]"),
  "surrogate.clip_high": (0.2, "ppo_clip: and above 1 + this", "[0, 10**6]"),
  "surrogate.dual_clip": (0.0, "ppo_clip: the largest ratio at a negative advantage; 0: off", "0 or (1, 10**6]"),
  "surrogate.cap": (0.0, "truncated, dppo: the largest ratio; 0: off", "[0, 10**6]"),
  "surrogate.divergence": (
    "tv",
    "dppo: of the drawn token and all others (tv, kl), or of the sampler's k most likely (topk_tv, topk_kl)",
    "one of tv, kl, topk_tv, topk_kl",
  ),
  "surrogate.k": (20, "dppo, topk_tv and topk_kl: how many", "[1, 2**16]"),
  "surrogate.mask_threshold": (0.15, "mask_drpo: |pi - mu| beyond which there is a penalty", "[0, 1]"),
  "surrogate.advantage_scale": (True, "penalties are multiplied by |A|", "True or False"),
  # what a response earns, rewards/
  "reward.verifiers": (
    (),
    "whose verdicts make the reward, as data.verifier names them; the first says what is solved; (): data.verifier",
    "texts",
  ),
  "reward.weights": ((), "of the verdicts in the reward, one each; (): 1 each", "numbers in [-10**6, 10**6]"),
  "reward.workers": (
    -1,
    "processes that verify, for training and evaluation; 0: this one; -1: one where a verifier is your own, else this one",
    "[-1, 1024]",
  ),
  "reward.timeout": (
    60.0,
    "seconds that a process has for an answer, which is wrong where they pass; 0: no limit",
    "0 or [0.05, 10**6]",
  ),
  "reward.overlong": (
    "judge",
    "a response that the limit cuts: judge (the verifier gets ended=False), wrong (0 of every verifier), mask (out of the loss), soft (less "
    "near the limit)",
    "one of judge, wrong, mask, soft",
  ),
  "reward.overlong_buffer": (0, "soft: tokens before the limit over which the reward falls", "[0, 2**24]"),
  "reward.overlong_penalty": (1.0, "soft: by how much it falls, at the limit", "[0, 10**6]"),
  "optimizer.kind": ("adamw", "adamw, or sgd", "one of adamw, sgd"),
  "optimizer.lr": (1e-4, "learning rate", "(0, 1000]"),
  "optimizer.vision_lr": (1.0, "of the vision tower where it is trained, in multiples of optimizer.lr", "[0, 10**6]"),
  "optimizer.warmup": (0, "updates from 0 to lr", "[0, 10**9]"),
  "optimizer.schedule": (
    "constant",
    "behind the warm-up: constant; linear or cosine, down to min_lr_ratio of lr over decay_updates, and constant from there",
    "one of constant, linear, cosine",
  ),
  "optimizer.decay_updates": (
    0,
    "linear, cosine: updates of the fall; a run makes steps x updates_per_rollout x mini_batches of them, the warm-up's included",
    "[0, 10**9]",
  ),
  "optimizer.min_lr_ratio": (0.0, "linear, cosine: what is left of lr at the end, as a share", "[0, 1]"),
  "optimizer.clip": (1.0, "global norm; 0: off", "[0, 10**6]"),
  "optimizer.b1": (0.9, "adamw: decay of the mean of gradients", "[0, 0.999999]"),
  "optimizer.b2": (0.999, "adamw: decay of the mean of their squares", "[0, 0.999999]"),
  "optimizer.eps": (1e-8, "adamw: added to the root of that mean", "[10**-30, 1]"),
  "optimizer.momentum": (0.0, "sgd: decay of the sum of gradients; 0: none is kept", "[0, 0.999999]"),
  "optimizer.weight_decay": (0.0, "matrices only, decoupled from the gradient", "[0, 1000]"),
  "optimizer.max_skipped": (10, "updates in a row with a NaN or Inf before the run stops", "[1, 10**9]"),
  "eval.every": (10, "steps, also before the first and after the last; 0: never", "[0, 10**9]"),
  "eval.path": ("", '"": the task\'s held-out problems; a file has to be named', "path"),
  "eval.prompts": (128, "held-out problems", "[1, 10**6]"),
  "eval.k": (1, "samples per prompt", "[1, 2**16]"),
  "eval.pass_at": ((1,), "pass@k for each of these, none above eval.k", "whole numbers in [1, 2**16]"),
  "eval.max_tokens": (0, "0: horizon.max. Evaluation is never cut by the horizon", "[0, 2**24]"),
  "eval.temperature": (1.0, "0: greedy", "0 or [10**-6, 1000]"),
  "eval.greedy": (False, "answer every problem once more by its likeliest tokens", "True or False"),
  "eval.batch": (128, "prompts per call of the evaluation program", "[1, 2**20]"),
  "checkpoint.every": (50, "steps, also after the last; 0: only after the last", "[0, 10**9]"),
  "checkpoint.keep": (2, "checkpoints", "[1, 10**6]"),
  # devices, runtime/mesh.py
  "mesh.data": (-1, "-1: the devices that the other axes leave", "-1 or [1, 2**20]"),
  "mesh.fsdp": (1, "devices that rows and the width of matrices are split over", "-1 or [1, 2**20]"),
  "mesh.expert": (1, "experts of a mixture-of-experts teacher; rows too, as fsdp", "-1 or [1, 2**20]"),
  "mesh.tensor": (1, "devices that heads, feed-forward width and vocabulary are split over", "-1 or [1, 2**20]"),
  "mesh.teacher": (
    "fsdp",
    "teachers' weights lie, beside tensor, over: none, fsdp, all (data too)",
    "one of none, fsdp, all",
  ),
  "precision": (
    "auto",
    "compute type; auto: float32 on CPU, bfloat16 on accelerators",
    "one of auto, float32, bfloat16",
  ),
  "attention": (
    "auto",
    "xla, blocks (CPU), cudnn (GPU), splash (TPU); auto: the platform's own, models/kernels.py",
    "one of auto, xla, blocks, cudnn, splash",
  ),
  "remat": (
    "none",
    "what the backward pass computes again: none, dots (all but products with weights), layer",
    "one of none, dots, layer",
  ),
  "compile_cache": ("auto", 'a directory; auto: .jax_cache beside the workdir; off or "": none', "path"),
  "log.every": (1, "steps", "[1, 10**9]"),
  "log.bins": (16, "position bins over horizon.max", "[1, 2**16]"),
  "log.overlap_k": (8, "top-k overlap of student and teacher; 0: off", "[0, 2**24]"),
  "log.optimizer": (
    False,
    "how the optimiser's state goes with the gradient: momentum_cosine, second_moment_spread",
    "True or False",
  ),
  "log.tensorboard": (True, "TensorBoard files in the workdir", "True or False"),
  "log.wandb": ("", 'a Weights & Biases project; "": off', "text"),
  "log.mlflow": ("", 'an MLflow experiment, on the server of MLFLOW_TRACKING_URI; "": off', "text"),
  "log.samples": (2, "rollouts written as text into samples.jsonl at every evaluation", "[0, 10**6]"),
  "log.rollouts": (0, "training rollouts of a logged step written token by token into rollouts.jsonl", "[0, 1000]"),
}
