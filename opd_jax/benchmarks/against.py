"""The rollout beside `generate` of PyTorch transformers: the same weights, the same prompts, the same work."""

import functools
import importlib.metadata
import importlib.util
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.errors import InputError
from opd_jax.models import hf
from opd_jax.rollout import sample
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime import timing
from opd_jax.runtime.machine import cores
from opd_jax.types import Batch, Params

LIBRARIES = ("transformers", "trl")  # trl: against_trl.py
COMPARED = (4, 8)  # rows and tokens; near ties among more of them could differ by rounding alone


def check_name(name: str) -> None:
  """Refuses a library that is not known."""
  if name not in LIBRARIES:
    raise InputError(f"--against={name} is not known; it can be {', '.join(LIBRARIES)}.")


def check(parts: Sequence[str]) -> None:
  """Refuses to time transformers where it is not installed, or where no rollout is timed.

  Args:
    parts: what is measured of rollout and update.

  Raises:
    InputError: in either case.
  """
  if "rollout" not in parts:
    raise InputError("--against=transformers times the rollout; leave out 'update', or --against.")
  if importlib.util.find_spec("torch") is None:
    raise InputError("--against=transformers needs PyTorch, which is not installed: pip install torch.")


class TransformersModel:
  """A model of PyTorch transformers with our weights, on the GPU where JAX's are on one too, otherwise on the cores.

  Attributes:
    greedy_tokens: how many tokens were compared with ours before anything was timed.
  """

  def __init__(self, subject: Subject, params: Params):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    self._torch = torch
    torch.set_num_threads(cores())
    self.device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as there:
      path = pathlib.Path(there) / "model"
      hf.write(path, subject.student, params, pad_id=0, eos_id=None, dtype="float32")
      model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    self._model = model.to(self.device).eval()
    self.greedy_tokens = self._check_greedy_tokens(subject, params)
    self._model = self._model.to(getattr(torch, subject.dtype.name))

  def measure(
    self, subject: Subject, case: Case, params: Params, run: jax.stages.Compiled, repeat: int
  ) -> dict[str, Any]:
    """Times both libraries in alternation and gives one record for the JSON, with the ratio of the medians.

    Args:
      run: our rollout, see `rollout.program`.
    """
    batch, key, s = subject.prompts(case), jax.random.key(0), subject.c.sampling
    ids = np.repeat(np.asarray(batch.prompt), case.n, axis=0)
    sampling = {"do_sample": True, "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k}
    calls = {
      "ours": lambda: run(params, batch, key, np.int32(case.horizon)),
      "theirs": lambda: self.generate(ids, case.horizon, **sampling),
    }
    threads = self.choose_threads(lambda: self.generate(ids, min(case.horizon, 32), **sampling))
    timing.interleaved(calls, 1)
    spent = timing.interleaved(calls, repeat)
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    tokens = case.rows * case.horizon
    return {
      **case.sizes,
      "against": "transformers",
      "device": self.device,
      "threads": threads,
      "greedy_tokens_compared": self.greedy_tokens,
      "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
      **{
        name: timing.summary(seconds) | {"tokens_per_second": tokens / median[name]} for name, seconds in spent.items()
      },
      "ratio": median["theirs"] / median["ours"],
    }

  def choose_threads(self, call: Callable[[], Any]) -> int:
    """Sets PyTorch's threads to all cores, or to one where that is faster; returns the number.

    It is faster where other processes keep the cores busy, since threads spin at barriers.
    """

    def with_threads(n: int) -> Any:
      self._torch.set_num_threads(n)
      return call()

    spent = timing.interleaved({n: functools.partial(with_threads, n) for n in (cores(), 1)}, 2)
    best = min(spent, key=lambda n: min(spent[n]))
    self._torch.set_num_threads(best)
    return best

  def generate(self, ids: np.ndarray, tokens: int, **generation: Any) -> np.ndarray:
    """Generates int[B, tokens] after prompts int[B, P], none of them a stop token.

    Args:
      generation: arguments of `generate`, such as do_sample.
    """
    prompt = self._torch.tensor(ids, dtype=self._torch.long, device=self.device)
    with self._torch.inference_mode():
      sequences = self._model.generate(
        prompt,
        attention_mask=self._torch.ones_like(prompt),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        use_cache=True,
        pad_token_id=0,
        **generation,
      )
    return sequences[:, ids.shape[1] :].cpu().numpy()

  def _check_greedy_tokens(self, subject: Subject, params: Params) -> int:
    """Compares greedy tokens of both in fp32; returns how many were compared.

    Raises:
      RuntimeError: where they differ, since then two different models would be timed.
    """
    rows, tokens = COMPARED
    rng, shape = np.random.default_rng(0), (subject.mesh.size * rows, 8)
    ids = rng.integers(0, subject.student.vocab, shape, np.int32)
    prompts = Batch(ids, np.ones(shape, bool))  # pyright: ignore[reportArgumentType]
    batch = jax.device_put(prompts, meshes.rows(subject.mesh))
    sampling = sample.Sampling((), 0, subject.student.vocab, temperature=0)
    greedy = jax.jit(
      functools.partial(sample.rollout, cfg=subject.student, sampling=sampling, response_len=tokens, dtype=jnp.float32)
    )
    with jax.default_matmul_precision("highest"):
      ours = greedy(params, batch, jax.random.key(0), np.int32(tokens))
    theirs = self.generate(ids, tokens, do_sample=False)
    if not np.array_equal(np.asarray(ours.response), theirs):
      raise RuntimeError("transformers' greedy tokens are not ours: the two do not run the same model")
    return theirs.size
