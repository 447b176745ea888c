"""Prompts on their way from problems to the device: token ids, then endless shuffled batches that resume exactly.

Dimensions: B prompts per step, P prompt width.
"""

import contextlib
import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from opd_jax.context import chat
from opd_jax.data.sources import Example
from opd_jax.errors import InputError
from opd_jax.types import Batch, Rollout

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase


class Prompts:
  """An endless iterator over batches of left-padded prompts.

  Every epoch visits each prompt once, in an order drawn from (seed, epoch). A batch may reach into the next epoch,
  so it can be larger than the data. The order depends on nothing else, and `restore(state())` repeats it exactly.
  """

  index: Int[np.ndarray, "b"]  # which prompts the last batch holds, of the rows made here

  def __init__(
    self,
    ids: Sequence[Sequence[int]],
    batch: int,
    widths: Sequence[int],
    pad_id: int,
    seed: int,
    shuffle: bool = True,
    rows: Int[np.ndarray, "b"] | None = None,
    teacher_ids: Sequence[Sequence[int]] | None = None,
  ):
    """
    Args:
      ids: token ids of each prompt.
      batch: prompts per step.
      widths: rising; P is the first that holds a batch's longest prompt, and the last holds every prompt.
      pad_id: fills the left; masked.
      seed: of the order.
      shuffle: draw an order for each epoch; False keeps the order of `ids`.
      rows: which rows of every batch are made here, where several processes share them; None: all.
      teacher_ids: what the teachers read for each prompt, where it is another one.
    """
    import grain  # a second of start-up that readers of `tokenise` alone should not pay

    self._rows = [np.asarray(row, np.int32) for row in ids]
    if not self._rows:
      raise InputError("There is no prompt to train on; check data.path.")
    longest = max(map(len, self._rows))
    if longest > widths[-1]:
      raise ValueError(f"a prompt of {longest} tokens does not fit the width {widths[-1]}")
    self._teacher_rows = None if teacher_ids is None else [np.asarray(row, np.int32) for row in teacher_ids]
    self.teacher_width = 0 if teacher_ids is None else width(teacher_ids)
    self._widths, self._pad_id = tuple(widths), pad_id
    self._mine = np.arange(batch) if rows is None else rows
    digest = hashlib.sha256(np.asarray([len(row) for row in self._rows], np.int64).tobytes())
    for row in self._rows:
      digest.update(row.tobytes())
    self._source = {
      "prompts": len(self._rows),
      "digest": digest.hexdigest()[:16],
      "batch": int(batch),
      "seed": int(seed),
      "shuffle": bool(shuffle),
    }
    self._ahead = _Epochs(len(self._rows), seed, shuffle)  # for `width`, with an epoch of its own in mind
    order = grain.MapDataset.source(_Epochs(len(self._rows), seed, shuffle)).batch(batch, drop_remainder=True)
    # Everything is in memory: threads would only wait for each other.
    self._order = iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

  def __iter__(self) -> "Prompts":
    return self

  def __next__(self) -> Batch:
    """The rows made here of the next B prompts, as numpy arrays: prompt int32[b, P], prompt_mask bool[b, P]."""
    every = np.asarray(next(self._order), np.int64)
    self.index = every[self._mine]
    batch = pad([self._rows[i] for i in self.index], self._holds(every), self._pad_id)
    if self._teacher_rows is None:
      return batch
    theirs = pad([self._teacher_rows[i] for i in self.index], self.teacher_width, self._pad_id)
    return dataclasses.replace(batch, teacher_prompt=theirs.prompt, teacher_prompt_mask=theirs.prompt_mask)

  @property
  def source(self) -> dict[str, Any]:
    """What the order depends on, and a digest of the prompts themselves."""
    return dict(self._source)

  def width(self, step: int) -> int:
    """P of the batch that is the `step`-th from the beginning, without reading up to it."""
    B = self._source["batch"]
    return self._holds(self._ahead[i] for i in range(step * B, (step + 1) * B))

  def upcoming(self, first: int, end: int) -> list[int]:
    """The numbers of the prompts that steps `first` to `end` - 1 read, each once."""
    B = self._source["batch"]
    return sorted({self._ahead[i] for i in range(first * B, end * B)})

  def replace(self, rows: Mapping[int, Sequence[int]]) -> None:
    """Other token ids for prompts that keep their place; none longer than the last width."""
    for i, row in rows.items():
      self._rows[i] = np.asarray(row, np.int32)

  def _holds(self, index: Iterable[int]) -> int:
    if len(self._widths) == 1:
      return self._widths[0]
    longest = max(len(self._rows[i]) for i in index)
    return next(w for w in self._widths if w >= longest)

  def state(self) -> dict[str, Any]:
    """The position after the last batch, for JSON."""
    return {"source": self.source, "order": dict(self._order.get_state())}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on after the batch that `state()` was taken behind.

    Raises:
      InputError: the state belongs to other prompts, or to another batch size, seed or order.
    """
    then = state["source"]
    for key, was in then.items():
      now = self._source[key]
      if was != now:
        what = "the prompts are others than" if key == "digest" else f"{key} is {now}, and was {was},"
        raise InputError(
          f"The run cannot go on where it stopped: {what} when its checkpoint was written; "
          "give it the data file, tokenizer and config that it began with, or a new workdir."
        )
    self._order.set_state(state["order"])


class _Epochs:
  """Endless epochs over n prompts: element i is the number of the prompt that stands there.

  It takes the place of grain's own shuffle, which spends 65536 / n rounds of a cipher on each element: 50 ms for a
  batch of 64 out of 64 prompts.
  """

  def __init__(self, n: int, seed: int, shuffle: bool):
    self._n, self._seed, self._shuffle = n, seed % 2**64, shuffle
    self._epoch, self._order = -1, np.arange(n)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> int:
    epoch, at = divmod(int(index), self._n)
    if self._shuffle and epoch != self._epoch:
      # numpy promises these raw bits for every version, and not the order that permutation() makes of them.
      bits = np.random.Philox(key=np.array([self._seed, epoch], np.uint64)).random_raw(self._n)
      self._epoch, self._order = epoch, np.argsort(bits, kind="stable")
    return int(self._order[at])


def tokenise(
  examples: Sequence[Example],
  tokenizer: "PreTrainedTokenizerBase",
  *,
  chat_template: bool,
  system: str = "",
  max_prompt: int,
  on_bad_line: str,
) -> tuple[list[list[int]], list[Example], int]:
  """Token ids of every usable prompt, their examples, and the number of examples left out.

  Args:
    chat_template, system: see `chat.render`.
    max_prompt: tokens.
    on_bad_line: what becomes of a prompt that is too long: "refuse" stops, "skip" leaves it out, "truncate" keeps its
      last `max_prompt` tokens. A prompt that cannot be rendered, or has no tokens, is left out under "skip" only.

  Raises:
    InputError: a prompt that may not be left out, or no usable prompt at all.
  """
  ids, kept, faults = [], [], []
  rows, refused = _render(examples, tokenizer, chat_template, system)
  longest = max((len(row) for row in rows if row is not None), default=0)
  for example, row, fault in zip(examples, rows, refused, strict=True):
    if row is None:
      fault, mend = f"{example.where}: {fault}", "or set data.on_bad_line=skip"
    elif not row:
      fault, mend = (
        f"{example.where}: the prompt has no tokens in this tokenizer",
        "mend it, or set data.on_bad_line=skip",
      )
    elif len(row) > max_prompt and on_bad_line != "truncate":
      fault = f"{example.where}: the prompt has {len(row)} tokens, more than data.max_prompt={max_prompt}"
      mend = f"raise data.max_prompt (the longest has {longest}), or set data.on_bad_line to skip or truncate"
    else:
      ids.append(row[-max_prompt:])
      kept.append(example)
      continue
    if on_bad_line != "skip":
      raise InputError(f"{fault}; {mend}.")
    faults.append(fault)
  if not kept:
    first = f"; the first fault is at {faults[0]}" if faults else ""
    raise InputError(f"None of the {len(examples)} prompts can be used{first}.")
  return ids, kept, len(faults)


def width(ids: Sequence[Sequence[int]], multiple: int = 16, limit: int | None = None) -> int:
  """P: the longest prompt, rounded up to a multiple so that a changed file seldom means a new compile."""
  longest = max(map(len, ids))
  rounded = -(-longest // multiple) * multiple
  return rounded if limit is None else max(longest, min(rounded, limit))


def widths(ids: Sequence[Sequence[int]], ratio: float, multiple: int = 8) -> tuple[int, ...]:
  """Prompt widths to compile for, rising to `width`, each at most `ratio` of the one before; ratio 0: only that one.

  Padded to the first width that holds it, the longest prompt of a batch leaves less than 1 - 1 / ratio of the width
  empty. None is below 16.
  """
  rising = [width(ids)]
  shortest = max(min(map(len, ids)), 2 * multiple)
  while ratio:
    below = math.ceil(rising[0] / ratio / multiple) * multiple
    if not shortest <= below < rising[0]:
      break
    rising.insert(0, below)
  return tuple(rising)


def pad(rows: Sequence[Sequence[int] | np.ndarray], width: int, pad_id: int) -> Batch:
  """Rows of token ids, left-padded: the response of every row then begins at the same column."""
  prompt = np.full((len(rows), width), pad_id, np.int32)
  mask = np.zeros((len(rows), width), np.bool_)
  for i, row in enumerate(rows):
    if len(row):
      prompt[i, -len(row) :] = row
      mask[i, -len(row) :] = True
  return Batch(prompt=prompt, prompt_mask=mask)  # pyright: ignore[reportArgumentType]: numpy until it is put on devices


def given(rows: Sequence[Sequence[int]], width: int, limit: int, pad_id: int) -> Rollout:
  """Responses that are there already, cut at `limit` <= `width` tokens, as if somebody had just said them."""
  response = np.full((len(rows), width), pad_id, np.int32)
  mask = np.zeros((len(rows), width), np.bool_)
  for i, row in enumerate(rows):
    n = min(len(row), limit)
    response[i, :n], mask[i, :n] = row[:n], True
  ended = np.array([len(row) <= limit for row in rows])
  return Rollout(response, mask, np.zeros((len(rows), width), np.float32), ended)  # pyright: ignore[reportArgumentType]: numpy


def _render(
  examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", chat_template: bool, system: str
) -> tuple[list[list[int] | None], list[str]]:
  """Token ids of each example, or None and the reason."""
  chat.uses_template(tokenizer, chat_template=chat_template, system=system)  # a fault of the config, not of a line
  with contextlib.suppress(InputError):  # then one by one, to name the lines
    rows = chat.render_all([e.prompt for e in examples], tokenizer, chat_template=chat_template, system=system)
    return list(rows), [""] * len(rows)
  out: list[tuple[list[int] | None, str]] = []
  for example in examples:
    try:
      out.append((chat.render(example.prompt, tokenizer, chat_template=chat_template, system=system), ""))
    except InputError as e:
      out.append((None, str(e)))
  return [row for row, _ in out], [fault for _, fault in out]
