"""Trees: rollouts branch, and each step earns how much better its outcomes are than those of the steps beside it.

cpu    python -m opd_jax.train --config=configs/treepo.py --workdir=runs/treepo
       60 steps; with --config.steps=120 --config.eval.prompts=512 on two busy cores 172 s of training, accuracy 0.146 -> 0.238 at temperature 1,
       greedy 0.318 -> 0.287 (seed 0)
hf     --config=configs/treepo.py:hf      any Hugging Face directory and a JSONL file of problems with answers
paper  --config=configs/treepo.py:paper   the sizes of configs/graphpo.py:paper

It is GraphPO (configs/graphpo.py) without states that are taken together, and so without what shorter ways earn; the credit of a step
is that of tree methods (TreePO, arXiv:2508.17445; Tree-GRPO, arXiv:2509.21240) in its simplest form.
"""

from opd_jax.config import at_scale, branching


def get_config(scale: str = "cpu"):
  c = branching(at_scale(scale, recipe="graph"), scale)
  c.graph.state = "none"
  c.graph.efficiency = 0.0
  c.graph.novelty = False
  return c
