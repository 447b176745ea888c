"""Training steps of TRL's DistillationTrainer on given models and sizes, with nothing else of this package.

    /path/to/venv/bin/python -I trl_step.py ANSWER < SIZES

SIZES is a JSON object with the fields of `Sizes`, and ANSWER the file that the answer is written to, as JSON. Without
sizes (an empty object) the trainer is imported and the answer has the versions alone. Standard output is TRL's own.

What is timed is as near to training/distillation.py as TRL's options allow: rollouts of exactly `horizon` tokens,
reverse KL over the full vocabulary on every one of them, one update of AdamW. Nothing is logged, saved or downloaded.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What to time.

  Attributes:
    student, teacher: model directories without a tokenizer.
    prompts: token ids of every row of a step; a prompt stands once for each of its rollouts.
    micro_batch: rows that are differentiated at once.
    checkpointing: whether the backward pass computes layers again.
    repeat: steps that are timed, after one that warms up and one for each number of threads.
    device: "cuda" or "cpu"; a machine without CUDA computes on its cores.
    dtype: "float32" or "bfloat16", the compute type; the student's weights are fp32.
    threads: numbers of them to choose from.
  """

  student: str
  teacher: str
  vocab: int
  prompts: list[list[int]]
  horizon: int
  micro_batch: int
  checkpointing: bool
  learning_rate: float
  temperature: float
  top_p: float
  top_k: int
  repeat: int
  device: str
  dtype: str
  threads: list[int]


def main() -> None:
  """Reads the sizes, times the steps and writes the answer."""
  sizes = json.load(sys.stdin)
  alone = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
  # One GPU, since the trainer would give each of several its own rows.
  gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] if sizes.get("device") == "cuda" else ""
  os.environ.update(alone, CUDA_VISIBLE_DEVICES=gpu)  # before the libraries are imported, which read it then
  answer: dict[str, Any] = measure(Sizes(**sizes)) if sizes else imported()
  versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
  pathlib.Path(sys.argv[1]).write_text(json.dumps({"versions": versions, **answer}), encoding="utf-8")


def imported() -> dict[str, Any]:
  """Imports the trainer, which fails where it cannot be used."""
  from trl import DistillationConfig, DistillationTrainer

  return {"trainer": DistillationTrainer.__name__, "config": DistillationConfig.__name__}


def measure(sizes: Sizes) -> dict[str, Any]:
  """Times steps, and collects what shows that they are the work that is meant.

  Returns:
    step_seconds, rollout_seconds: of every timed step.
    tokens: that each step generated.
    parameters: of student and teacher.
    device, threads: on and with which they were computed.
  """
  import torch
  import transformers
  from datasets import Dataset
  from trl import DistillationConfig, DistillationTrainer

  transformers.logging.set_verbosity_error()
  device = "cuda" if sizes.device == "cuda" and torch.cuda.is_available() else "cpu"

  def model(path: str, dtype: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)

  student, teacher = model(sizes.student, torch.float32), model(sizes.teacher, getattr(torch, sizes.dtype))
  clock = Clock(torch.cuda.synchronize if device == "cuda" else lambda: None)
  threads = Threads(sizes.threads, torch.set_num_threads)
  rows, steps = len(sizes.prompts), threads.tried_until + sizes.repeat
  with tempfile.TemporaryDirectory() as there:
    options = DistillationConfig(
      output_dir=there,
      per_device_train_batch_size=sizes.micro_batch,
      gradient_accumulation_steps=rows // sizes.micro_batch,
      max_steps=steps,
      learning_rate=sizes.learning_rate,
      lr_scheduler_type="constant",
      beta=1.0,  # the reverse KL
      max_completion_length=sizes.horizon,
      temperature=sizes.temperature,
      top_p=sizes.top_p,
      top_k=sizes.top_k,
      generation_kwargs={"eos_token_id": None},  # nothing stops early
      gradient_checkpointing=sizes.checkpointing,
      use_cpu=device == "cpu",
      bf16=sizes.dtype == "bfloat16",
      dataloader_pin_memory=device == "cuda",
      logging_strategy="no",
      save_strategy="no",
      report_to="none",
      disable_tqdm=True,
    )
    text = [" ".join(map(str, ids)) for ids in sizes.prompts]
    trainer = DistillationTrainer(
      model=student,
      teacher_model=teacher,
      args=options,
      train_dataset=Dataset.from_dict({"prompt": text * steps}),
      processing_class=tokenizer(sizes.vocab),
      callbacks=[end_of_step(clock, threads)],
    )
    trainer.model.generate = clock.timed(trainer.model.generate)
    trainer.train()
  timed = slice(threads.tried_until, None)
  return {
    "step_seconds": clock.steps[timed],
    "rollout_seconds": clock.rollouts[timed],
    "tokens": clock.tokens[timed],
    "parameters": [sum(p.numel() for p in m.parameters()) for m in (student, teacher)],
    "device": device,
    "threads": threads.used,
  }


class Clock:
  """Seconds of steps and of the rollouts in them, in the order in which they end."""

  def __init__(self, synchronize: Any):
    self._synchronize = synchronize
    self._last = time.perf_counter()
    self.steps: list[float] = []
    self.rollouts: list[float] = []
    self.tokens: list[int] = []

  def now(self) -> float:
    """Waits for the device and returns the time."""
    self._synchronize()
    return time.perf_counter()

  def end_step(self) -> None:
    """Adds the seconds since the last step ended; those of the first step, which warms up, mean nothing."""
    ended = self.now()
    self.steps.append(ended - self._last)
    self._last = ended

  def timed(self, generate: Any) -> Any:
    """Wraps a model's `generate`, so that its seconds and its new tokens are added."""

    def call(*args: Any, **kwargs: Any) -> Any:
      began = self.now()
      sequences = generate(*args, **kwargs)
      self.rollouts.append(self.now() - began)
      self.tokens.append(sequences.shape[0] * (sequences.shape[1] - kwargs["input_ids"].shape[1]))
      return sequences

    return call


class Threads:
  """Chooses the number of threads with which a step is fastest: one where other processes keep the cores busy.

  Attributes:
    used: the number at the moment.
    tried_until: steps until the choice is made: the first warms up, and then each number has one.
  """

  def __init__(self, numbers: list[int], use: Any):
    self._use = use
    self._plan = [numbers[0], *(numbers if len(numbers) > 1 else ())]
    self.tried_until = len(self._plan)
    self._set(numbers[0])

  def next_step(self, seconds: list[float]) -> None:
    """Sets the number for the next step, after steps that took these seconds."""
    done = len(seconds)
    if done < self.tried_until:
      self._set(self._plan[done])
    elif done == self.tried_until:
      tried = list(zip(seconds, self._plan, strict=True))
      self._set(min(tried[1:] or tried)[1])

  def _set(self, number: int) -> None:
    self.used = number
    self._use(number)


def end_of_step(clock: Clock, threads: Threads) -> Any:
  """Makes the callback that follows every update."""
  from transformers import TrainerCallback

  class EndOfStep(TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
      clock.end_step()
      threads.next_step(clock.steps)

  return EndOfStep()


def tokenizer(vocab: int) -> Any:
  """Makes a tokenizer whose words are the ids themselves; its stop token is none that the model can draw."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  words = Tokenizer(models.WordLevel({str(i): i for i in range(vocab)} | {"<stop>": vocab}, unk_token="0"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
  return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="<stop>", padding_side="left")


if __name__ == "__main__":
  main()
