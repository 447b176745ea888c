"""The credit of GraphPO (arXiv:2606.18954) written out node by node, slow and without arrays: the reference of objectives/graph_advantage.py."""

import math
from statistics import fmean

EPSILON = 1e-6


def path_to(parent: list[int], node: int) -> list[int]:
  """The nodes from the prompt to this one, itself included."""
  return [node] if parent[node] < 0 else [*path_to(parent, parent[node]), node]


def outcomes(parent, reward, ends) -> tuple[list[float], list[int]]:
  """c and t: what ends at or below every node."""
  nodes = range(len(parent))
  below = [[leaf for leaf in nodes if ends[leaf] and v in path_to(parent, leaf)] for v in nodes]
  return [sum(reward[leaf] for leaf in leaves) for leaves in below], [len(leaves) for leaves in below]


def score(parent, reward, ends, classes, weight) -> list[float]:
  c, t = outcomes(parent, reward, ends)
  out: list[float] = []
  for v in range(len(parent)):
    others = [q for q in range(len(parent)) if classes[q] == classes[v] and q != v]
    denominator = t[v] + weight * sum(t[q] for q in others)
    if denominator > 0:
      out.append((c[v] + weight * sum(c[q] for q in others)) / denominator)
    else:
      out.append(out[parent[v]] if parent[v] >= 0 else 0.0)
  return out


def standardised(values: list[float]) -> list[float]:
  mean = fmean(values)
  std = math.sqrt(fmean((x - mean) ** 2 for x in values))
  return [(x - mean) / (std + EPSILON) for x in values]


def advantage(parent, reward, ends, classes, weight, efficiency, similarity=None) -> list[float]:
  """A of the edge to every node; 0 of the prompt."""
  s, nodes = score(parent, reward, ends, classes, weight), range(len(parent))
  cor, eff = [0.0] * len(parent), [0.0] * len(parent)
  for u in nodes:
    group = [x for x in nodes if parent[x] >= 0 and classes[parent[x]] == classes[u]]
    if len(group) > 1:
      gate = [max(0.0, similarity[x]) if similarity else 0.0 for x in group]
      rewards = [(s[x] - s[parent[x]]) * (1 - g) for x, g in zip(group, gate, strict=True)]
      for x, value in zip(group, standardised(rewards), strict=True):
        if parent[x] == u:
          cor[x] = value
  for number in set(classes):
    members = [v for v in nodes if classes[v] == number]
    if len(members) < 2:
      continue
    shared = set.intersection(*(set(path_to(parent, v)) for v in members))
    start = max(shared, key=lambda v: len(path_to(parent, v)))
    lengths = [len(path_to(parent, v)) - len(path_to(parent, start)) for v in members]
    for v, value in zip(members, standardised([-float(n) for n in lengths]), strict=True):
      for x in path_to(parent, v)[len(path_to(parent, start)) :]:
        eff[x] += fmean(s[m] for m in members) * value
  return [a + efficiency * b for a, b in zip(cor, eff, strict=True)]


def has_circle(parent, classes) -> bool:
  """Whether a class leads, step by step, back to itself."""
  edges = {(classes[p], classes[v]) for v, p in enumerate(parent) if p >= 0}
  left = set(classes)
  while left:
    free = {c for c in left if not any(a in left and b == c for a, b in edges)}
    if not free:
      return True
    left -= free
  return False
