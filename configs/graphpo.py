"""GraphPO: rollouts branch, equal states share their outcomes, and each step earns a credit of its own (arXiv:2606.18954).

cpu    python -m opd_jax.train --config=configs/graphpo.py --workdir=runs/graphpo
       60 steps; with --config.steps=120 --config.eval.prompts=512 on two busy cores 257 s of training, accuracy 0.146 -> 0.230 at temperature 1,
       greedy 0.318 -> 0.283 (seed 0). A tree without states in common (configs/treepo.py) has 0.238, greedy 0.287, with as many tokens
hf     --config=configs/graphpo.py:hf      any Hugging Face directory and a JSONL file of problems with answers
paper  --config=configs/graphpo.py:paper   the published hyper-parameters for Qwen2.5-Math-7B

The built-in task is countdown with four numbers, whose states are known: the numbers that are left (graph.state=key). Elsewhere two
steps lead to one state where the student's hidden states at their ends are alike by graph.kappa (graph.state=hidden); the paper embeds a
summary, which is graph.summary_tokens. The efficiency's share, graph.efficiency, is ours, since the paper gives none.
"""

from opd_jax.config import at_scale, branching


def get_config(scale: str = "cpu"):
  return branching(at_scale(scale, recipe="graph"), scale)
