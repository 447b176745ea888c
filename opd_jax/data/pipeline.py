"""Prompts on their way from problems to the device: token ids, then endless shuffled batches that resume exactly.

Dimensions: B prompts per step, b those of them that this process makes, P padded prompt length, H response length.
"""

import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from opd_jax.data import chat
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.order import Epochs, Mixture, proportions
from opd_jax.data.rendering import Rendering
from opd_jax.data.sources import Example
from opd_jax.errors import InputError, brief
from opd_jax.runtime.json_files import is_whole
from opd_jax.types import Batch, Rollout

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

DATE = "date in began.json"  # what names the day in the origin of prompts, where the template writes it


class Prompts:
  """An endless iterator over batches of left-padded prompts.

  Every epoch visits each prompt once, in an order drawn from (seed, epoch). A batch may reach into the next epoch,
  so it can be larger than the data. The order depends on nothing else, and `restore(state())` repeats it exactly.

  Of several sources with weights, each has epochs of its own, and the order takes from them in exact proportions.

  Attributes:
    index: which prompts the last batch holds, by their number.
    teacher_prompt_len: the padded length of the teachers' prompts; 0 where they read the student's.
  """

  index: Int[np.ndarray, " b"]

  def __init__(
    self,
    ids: Sequence[Sequence[int]],
    batch: int,
    prompt_lens: Sequence[int],
    pad_id: int,
    seed: int,
    shuffle: bool = True,
    rows: Int[np.ndarray, " b"] | None = None,
    teacher_ids: Sequence[Sequence[int]] | None = None,
    origin: Mapping[str, str] | None = None,
    mixture: Sequence[tuple[int, float]] = (),
  ):
    """Begins at the first batch.

    Args:
      ids: token ids of each prompt.
      batch: prompts per step, B.
      prompt_lens: rising; P is the first that holds a batch's longest prompt, and the last holds every prompt.
      pad_id: fills the left; masked.
      seed: of the order.
      shuffle: draw an order for each epoch; False keeps the order of `ids`.
      rows: which rows of every batch this process makes, where several share them; None: all.
      teacher_ids: token ids of the prompt that the teachers read for each of `ids`; None: the same.
      origin: what the ids were made of, each with a digest, to name what has changed where a run cannot go on.
      mixture: of several sources, whose prompts stand one source after another, how many each has and its weight; (): all
        prompts are one source.

    Raises:
      InputError: there is no prompt.
      ValueError: a prompt is longer than the last of `prompt_lens`.
    """
    import grain  # a second of start-up that readers of `tokenise` alone should not pay

    self._rows = [np.asarray(row, np.int32) for row in ids]
    if not self._rows:
      raise InputError("There is no prompt to train on; check data.path.")
    longest = max(map(len, self._rows))
    if longest > prompt_lens[-1]:
      raise ValueError(f"a prompt of {longest} tokens does not fit the padded length {prompt_lens[-1]}")
    self._teacher_rows = None if teacher_ids is None else [np.asarray(row, np.int32) for row in teacher_ids]
    self.teacher_prompt_len = 0 if teacher_ids is None else padded_len(teacher_ids)
    self._first_step = 0  # at which the order begins; later in a run that went on with other prompts
    self._prompt_lens = tuple(prompt_lens)
    self._pad_id = pad_id
    self._local_rows = np.arange(batch) if rows is None else rows
    digest = hashlib.sha256(np.asarray([len(row) for row in self._rows], np.int64).tobytes())
    for row in self._rows:
      digest.update(row.tobytes())
    if teacher_ids is not None and teacher_ids is not ids:
      digest.update(b"".join(np.asarray(row, np.int32).tobytes() for row in teacher_ids))
    self._fingerprint = {
      "prompts": len(self._rows),
      "digest": digest.hexdigest()[:16],
      "batch": int(batch),
      "seed": int(seed),
      "shuffle": bool(shuffle),
    }
    if mixture:
      counts, weights = zip(*mixture, strict=True)
      if sum(counts) != len(self._rows):
        raise ValueError(f"a mixture of {sum(counts)} prompts, and there are {len(self._rows)}")
      self._fingerprint["mixture"] = [list(pair) for pair in zip(counts, proportions(weights), strict=True)]

    def positions() -> Epochs | Mixture:
      return Mixture(counts, weights, seed, shuffle) if mixture else Epochs(len(self._rows), seed, shuffle)

    self._origin = dict(origin or {})
    self._lookahead = positions()  # apart from `_order`, since each holds one epoch's order
    order = grain.MapDataset.source(positions()).batch(batch, drop_remainder=True)
    # Everything is in memory: threads would only wait for each other.
    self._order = iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

  def __iter__(self) -> "Prompts":
    return self

  def __next__(self) -> Batch:
    """Return this process's rows of the next B prompts, as numpy arrays: prompt int32[b, P], prompt_mask bool[b, P]."""
    global_index = np.asarray(next(self._order), np.int64)
    self.index = global_index[self._local_rows]
    batch = pad([self._rows[i] for i in self.index], self._padded_len(global_index), self._pad_id)
    if self._teacher_rows is None:
      return batch
    teacher = pad([self._teacher_rows[i] for i in self.index], self.teacher_prompt_len, self._pad_id)
    return dataclasses.replace(batch, teacher_prompt=teacher.prompt, teacher_prompt_mask=teacher.prompt_mask)

  @property
  def fingerprint(self) -> dict[str, Any]:
    """The sizes, seed and switches that the order depends on, and a digest of the prompts themselves."""
    return dict(self._fingerprint)

  def prompt_len(self, step: int) -> int:
    """Return P of the batch that is the `step`-th from the beginning, which is found without reading up to it."""
    return self._padded_len(self._indices(step, step + 1))

  def indices_of_steps(self, first: int, end: int) -> list[int]:
    """The numbers of the prompts that steps `first` to `end` - 1 read, rising, each once."""
    return sorted(set(self._indices(first, end)))

  def _indices(self, first: int, end: int) -> Iterator[int]:
    B = self._fingerprint["batch"]
    first, end = (max(step - self._first_step, 0) for step in (first, end))
    return (self._lookahead[i] for i in range(first * B, end * B))

  def replace(self, rows: Mapping[int, Sequence[int]]) -> None:
    """Give prompts other token ids by their numbers, none longer than the last of `prompt_lens`."""
    for i, row in rows.items():
      self._rows[i] = np.asarray(row, np.int32)

  def _padded_len(self, index: Iterable[int]) -> int:
    """The length that these prompts are padded to."""
    if len(self._prompt_lens) == 1:
      return self._prompt_lens[0]
    longest = max(len(self._rows[i]) for i in index)
    return next(length for length in self._prompt_lens if length >= longest)

  def state(self) -> dict[str, Any]:
    """The position behind the last batch, as JSON."""
    state = {"source": self.fingerprint, "origin": dict(self._origin), "order": dict(self._order.get_state())}
    return state | ({"first_step": self._first_step} if self._first_step else {})

  def restore(self, state: dict[str, Any], begin_anew_at: int | None = None) -> None:
    """Go on behind the batch that `state()` was taken behind.

    Args:
      begin_anew_at: the step at which other prompts, or another batch size, seed or order, begin with their first batch;
        None: they are refused.

    Raises:
      InputError: the state belongs to other prompts, or to another batch size, seed or order.
      LookupError, TypeError, ValueError: it is no state.
    """
    if begin_anew_at is not None and state["source"] != self._fingerprint:
      self._first_step = begin_anew_at
      return
    if state["source"].keys() != self._fingerprint.keys() or not is_whole(
      state["order"]["next_index"], most=sys.maxsize
    ):
      raise ValueError("no state of prompts")
    self._first_step = state.get("first_step", 0)
    if not is_whole(self._first_step):
      raise ValueError("no first step")
    for key, was in state["source"].items():
      now = self._fingerprint[key]
      if was != now:
        what = "the prompts are others than" if key == "digest" else f"{key} is {now}, and was {brief(was)},"
        if key in ("digest", "prompts"):
          what = self._what_changed(state.get("origin")) or what
        raise InputError(
          f"{what} when its checkpoint was written; give it the data file, tokenizer and config that it began with, or a new workdir."
        )
    self._order.set_state(state["order"])

  def _what_changed(self, before: Mapping[str, str] | None) -> str:
    """Names what makes the prompts others than they were; "" where a checkpoint does not tell."""
    if not before and DATE in self._origin:  # a version that kept the prompts' digest alone, and no date
      return (
        f"the prompts are others (the chat template writes the date, for which began.json in the workdir has {self._origin[DATE]}; "
        "write the day that the run began there) than"
      )
    if not before:
      return ""
    changed = [f"the {name}" for name, now in self._origin.items() if before.get(name) != now]
    if not changed:
      return (
        "the prompts are rendered otherwise, from the same data, tokenizer and chat template, by other versions of the packages "
        "(those of run.json made it) than"
      )
    return f"{' and '.join(changed)} {'is another' if len(changed) == 1 else 'are others'} than"


def widen(batch: Batch, width: int, pad_id: int) -> Batch:
  """Pad prompts, int32[b, P], on their left to a larger width."""
  left = ((0, 0), (width - batch.prompt.shape[1], 0))
  return dataclasses.replace(
    batch,
    prompt=np.pad(batch.prompt, left, constant_values=pad_id),  # pyright: ignore[reportArgumentType]: numpy
    prompt_mask=np.pad(batch.prompt_mask, left),  # pyright: ignore[reportArgumentType]: numpy
  )


def tokenise(
  examples: Sequence[Example],
  tokenizer: "PreTrainedTokenizerBase",
  rendering: Rendering,
  *,
  max_prompt: int,
  on_bad_line: str,
  images: ImagePrompts | None = None,
) -> tuple[list[list[int]], list[Example], int]:
  """Tokenise the usable prompts; returns their token ids, their examples, and the number of examples left out.

  Args:
    images: makes room for the examples' images in their prompts; None: they have none.
    max_prompt: tokens.
    on_bad_line: what becomes of a prompt that is too long: "refuse" stops, "skip" leaves it out, "truncate" keeps its
      last `max_prompt` tokens, and its example says so. A prompt that cannot be rendered, or has no tokens, is left out
      under "skip" only.

  Raises:
    InputError: a prompt that may not be left out, or no usable prompt at all.
  """
  ids, usable, faults = [], [], []
  if images is None:
    rows, refusals = chat.render_each([e.prompt for e in examples], tokenizer, rendering)
  else:
    rows, refusals = images.render_each([(e.prompt, e.images) for e in examples], tokenizer, rendering)
  longest = max((len(row) for row in rows if row is not None), default=0)
  for example, row, refusal in zip(examples, rows, refusals, strict=True):
    if row is None:
      fault = refusal
      mend = "or set data.on_bad_line=skip"
    elif not row:
      fault = "the prompt has no tokens in this tokenizer"
      mend = "mend it, or set data.on_bad_line=skip"
    elif len(row) > max_prompt and on_bad_line != "truncate":
      fault = f"the prompt has {len(row)} tokens, more than data.max_prompt={max_prompt}"
      mend = f"raise data.max_prompt (the longest has {longest}), or set data.on_bad_line to skip or truncate"
    else:
      ids.append(row[-max_prompt:])
      usable.append(dataclasses.replace(example, cut=True) if len(row) > max_prompt else example)
      continue
    if on_bad_line != "skip":
      raise InputError(f"{example.where}: {fault}; {mend}.")
    faults.append(f"{example.where}: {fault}")
  if not usable:
    first = f"; the first fault is at {faults[0]}" if faults else ""
    raise InputError(f"None of the {len(examples)} prompts can be used{first}.")
  return ids, usable, len(faults)


def padded_len(ids: Sequence[Sequence[int]], multiple: int = 16, limit: int | None = None) -> int:
  """Choose P, the longest prompt rounded up to a multiple, so that a changed file seldom means a new compile.

  Args:
    limit: P is not rounded up beyond it; None: no limit.
  """
  longest = max(map(len, ids))
  rounded = -(-longest // multiple) * multiple
  return rounded if limit is None else max(longest, min(rounded, limit))


def padded_lens(
  ids: Sequence[Sequence[int]], ratio: float, multiple: int = 8, limit: int | None = None
) -> tuple[int, ...]:
  """Choose the prompt lengths to compile for, rising to `padded_len`, each at most `ratio` times the one before.

  Padded to the first length that holds it, the longest prompt of a batch leaves less than 1 - 1 / ratio of it empty.
  None is below 16, or below `limit`. Ratio 0 gives `padded_len` alone.
  """
  longest = padded_len(ids, limit=limit)
  return rising_widths(longest, ratio, min(longest, max(min(map(len, ids)), 2 * multiple)), multiple)


def rising_widths(longest: int, ratio: float, shortest: int, multiple: int = 8) -> tuple[int, ...]:
  """Choose widths that rise to `longest`, each at most `ratio` times the one before, and none below `shortest`; 0: one."""
  rising = [longest]
  while ratio:
    below = math.ceil(rising[0] / ratio / multiple) * multiple
    if not shortest <= below < rising[0]:
      break
    rising.insert(0, below)
  return tuple(rising)


def pad(rows: Sequence[Sequence[int] | np.ndarray], length: int, pad_id: int) -> Batch:
  """Left-pad rows of token ids to [B, length], so that the response of every row begins at the same column."""
  prompt = np.full((len(rows), length), pad_id, np.int32)
  mask = np.zeros((len(rows), length), np.bool_)
  for i, row in enumerate(rows):
    if len(row):
      prompt[i, -len(row) :] = row
      mask[i, -len(row) :] = True
  return Batch(prompt=prompt, prompt_mask=mask)  # pyright: ignore[reportArgumentType]: numpy until it is put on devices


def rollout_from_data(rows: Sequence[Sequence[int]], response_len: int, limit: int, pad_id: int) -> Rollout:
  """Make a rollout of responses that the data have, of H = `response_len` columns.

  Args:
    rows: token ids of each response, its stop token included.
    limit: responses are cut at so many tokens, at most H.

  The behaviour log-probabilities are zeros, since no model of ours sampled the responses.
  """
  response = np.full((len(rows), response_len), pad_id, np.int32)
  mask = np.zeros((len(rows), response_len), np.bool_)
  for i, row in enumerate(rows):
    n = min(len(row), limit)
    response[i, :n] = row[:n]
    mask[i, :n] = True
  ended = np.array([len(row) <= limit for row in rows])
  logprob = np.zeros((len(rows), response_len), np.float32)
  return Rollout(response, mask, logprob, ended)  # pyright: ignore[reportArgumentType]: numpy until it is on devices
