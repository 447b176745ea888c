"""Makes a Hugging Face directory, which runs take as a student or a teacher: of a GGUF file of llama.cpp, or a smaller one of another.

    python -m opd_jax.convert FILE.gguf DIR [--dtype=bfloat16] [--tokenizer=DIR]
    python -m opd_jax.convert ORIGINAL PRUNED --drop-layers=20-23         without these layers, counted from 0
    python -m opd_jax.convert ORIGINAL ROUNDED --bits=3 [--group=64]       the layers' matrices rounded to 3 bits

A model that was pruned or rounded is a student to heal from the original, docs/healing.md.

GGUF: for models of Llama and Qwen (architectures llama, qwen2 and qwen3 in the file), of any quantisation that the package gguf
knows: pip install 'opd-jax[gguf]'. Quantised weights are written as the numbers that they stand for.
"""

import argparse
import pathlib

from opd_jax import config as configs
from opd_jax.config import expanded_path
from opd_jax.errors import InputError
from opd_jax.runtime import cli


def convert(
  source: pathlib.Path, out: pathlib.Path, dtype: str = "bfloat16", tokenizer: pathlib.Path | None = None
) -> None:
  """Write the directory; it appears whole or not at all.

  Args:
    dtype: "bfloat16" or "float32".
    tokenizer: a directory whose tokenizer is copied; None: that of the file.

  Raises:
    InputError: the file cannot be converted exactly, or there is something at `out`.
  """
  from opd_jax.data import gguf_tokenizer
  from opd_jax.data import tokenizer as tokenizers
  from opd_jax.models import directory as directories
  from opd_jax.models import gguf_files, hf, weights

  hf.check_new(out)
  file = gguf_files.File(source)
  cfg, config, stops = gguf_files.described(file), gguf_files.config(file), gguf_tokenizer.stop_ids(file)
  parameters = gguf_files.parameters(file, cfg)
  special = {"eos_token_id": stops or None}
  special |= {key: gguf_files.token_id(file, f"tokenizer.ggml.{name}_token_id") for key, name in IDS.items()}
  with directories.appearing_whole(out) as part:
    if tokenizer is None:
      gguf_tokenizer.write(file, part)
    else:
      directories.copy(tokenizer, part, directories.TOKENIZER)
    directories.write_json(part / "config.json", config | special | {"torch_dtype": dtype})
    directories.write_json(part / "generation_config.json", {k: v for k, v in special.items() if v is not None})
    tokenizers.load(part)
    weights.write(part, cfg, parameters, {"bfloat16": "BF16", "float32": "F32"}[dtype], 5e9)
    hf.check_directory(part)


IDS = {"bos_token_id": "bos", "pad_token_id": "padding"}


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("file", help="a GGUF file, or a model directory or builtin:NAME to make a smaller one of")
  parser.add_argument("out", help="the directory to write; it must not hold anything yet")
  parser.add_argument(
    "--dtype", choices=["bfloat16", "float32"], help="of a GGUF file: type of the weights on disk (bfloat16)"
  )
  parser.add_argument(
    "--tokenizer", help="of a GGUF file: a directory that has the model's tokenizer, in place of its own"
  )
  parser.add_argument("--drop-layers", default="", help="of a directory: layers to leave out, such as 20-23")
  parser.add_argument(
    "--bits", type=int, default=0, help="of a directory: round the layers' matrices to so many bits, 2 to 8"
  )
  parser.add_argument("--group", type=int, default=64, help="weights that share a scale there (64)")
  args = parser.parse_args()
  cli.quiet()
  with cli.reporting_the_end():
    source, out = source_of(args.file), expanded_path(args.out)
    if source.is_dir():
      _smaller(source, out, args)
      return
    if args.drop_layers or args.bits:
      raise InputError(
        f"{args.file} is no model directory, of which layers can be left out or rounded; convert it first."
      )
    tokenizer = expanded_path(args.tokenizer) if args.tokenizer else None
    if tokenizer and not tokenizer.is_dir():
      raise InputError(f"--tokenizer={args.tokenizer} is no directory.")
    convert(source, out, args.dtype or "bfloat16", tokenizer)
    print(f"wrote {args.file} to {out}")


def source_of(name: str) -> pathlib.Path:
  """Find what is converted: a file, a directory, or a built-in model's directory.

  Raises:
    InputError: there is no such built-in model.
  """
  from opd_jax.models import hf

  return hf.resolve(name) if name.startswith(configs.BUILTIN) else expanded_path(name)


def _smaller(source: pathlib.Path, out: pathlib.Path, args: argparse.Namespace) -> None:
  """Write a copy of a directory with fewer layers, or with weights of few bits."""
  from opd_jax.models import pruning

  if args.dtype or args.tokenizer:
    raise InputError("--dtype and --tokenizer are for GGUF files; a directory keeps its own.")
  if not args.drop_layers and not args.bits:
    raise InputError(f"{source} is a model directory; say what to make of it: --drop-layers=20-23, or --bits=3.")
  if args.group < 1:
    raise InputError(f"--group is {args.group}; it has to be at least 1.")
  drop = pruning.layers_of(args.drop_layers) if args.drop_layers else ()
  pruning.write(source, out, drop=drop, bits=args.bits, group=args.group)
  done = [f"without {len(drop)} layers"] * bool(drop) + [f"its matrices rounded to {args.bits} bits"] * bool(args.bits)
  print(f"wrote {source}, {' and '.join(done)}, to {out}")


if __name__ == "__main__":
  main()
