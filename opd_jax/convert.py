"""Converts a GGUF file of llama.cpp to a Hugging Face directory, which runs take as a student or a teacher.

python -m opd_jax.convert FILE.gguf DIR [--dtype=bfloat16] [--tokenizer=DIR]

For models of Llama and Qwen (architectures llama, qwen2 and qwen3 in the file), of any quantisation that the package gguf
knows: pip install 'opd-jax[gguf]'. Quantised weights are written as the numbers that they stand for.
"""

import argparse
import pathlib

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
  parser.add_argument("file", help="a GGUF file")
  parser.add_argument("out", help="the directory to write; it must not hold anything yet")
  parser.add_argument(
    "--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="type of the weights on disk"
  )
  parser.add_argument("--tokenizer", help="a directory that has the model's tokenizer, in place of the file's own")
  args = parser.parse_args()
  cli.quiet()
  with cli.reporting_the_end():
    tokenizer = expanded_path(args.tokenizer) if args.tokenizer else None
    if tokenizer and not tokenizer.is_dir():
      raise InputError(f"--tokenizer={args.tokenizer} is no directory.")
    out = expanded_path(args.out)
    convert(expanded_path(args.file), out, args.dtype, tokenizer)
    print(f"wrote {args.file} to {out}")


if __name__ == "__main__":
  main()
