"""An independent implementation of every divergence, in plain Python floats: no array operation, no shared formula.

Probabilities instead of logarithms, loops instead of sums, central differences instead of derivatives. Good to about
1e-9 in value and 1e-7 in gradient where probabilities are not tiny.
"""

import math


def softmax(logits, temperature=1.0):
  most = max(logits)
  weights = [math.exp((x - most) / temperature) for x in logits]
  return [w / math.fsum(weights) for w in weights]


def kl(p, q):
  return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def entries(kind, student, teacher, beta=0.5, normalised=False, held=None):
  """Compute what each id adds to the divergence.

  Args:
    held: the student in the proximal teacher, which does not move with it; None: the same.
  """
  per_id = []
  for s, t, h in zip(student, teacher, held or student, strict=True):
    reverse = s * math.log(s / t) if s > 0 else 0.0
    forward = t * math.log(t / s) if t > 0 else 0.0
    if kind == "reverse_kl":
      per_id.append(reverse)
    elif kind == "forward_kl":
      per_id.append(forward)
    elif kind == "mixture":
      per_id.append(beta * reverse + (1 - beta) * forward)
    elif kind == "proximal":
      per_id.append(s * math.log(s / (beta * t + (1 - beta) * h)) if s > 0 else 0.0)
    elif kind != "jsd":
      raise ValueError(f"no formula for {kind!r}")
    elif normalised and beta == 0:
      per_id.append(forward)
    elif normalised and beta == 1:
      per_id.append(reverse)
    else:
      m = beta * t + (1 - beta) * s
      part = sum(w * p * math.log(p / m) for w, p in ((beta, t), (1 - beta, s)) if p > 0)
      per_id.append(part / (beta * (1 - beta)) if normalised else part)
  return per_id


def top(probabilities, k):
  return sorted(range(len(probabilities)), key=lambda v: -probabilities[v])[:k]


def chosen(o, student, teacher):
  """List the ids that are compared, each once."""
  if o.support == "full":
    return list(range(len(student)))
  ids = top(teacher, o.k) if o.support == "teacher_topk" else top(student, o.k)
  if o.support == "both_topk":
    ids = ids + [v for v in top(teacher, o.k) if v not in ids]
  return ids


def restrict(o, ids, probabilities):
  """Restrict probabilities to the ids: as they are, renormalised, or with a bucket for the other ids."""
  chosen = [probabilities[v] for v in ids]
  if o.support == "full":
    return chosen
  if o.tail == "renormalise":
    return [p / math.fsum(chosen) for p in chosen]
  return [*chosen, math.fsum(p for v, p in enumerate(probabilities) if v not in ids)]


def divergence(o, student_logits, teacher_logits, ids=None, held_logits=None):
  """Compute the objective at one position, over ids chosen here unless given; for the student that is held see `entries`."""
  held = softmax(held_logits or student_logits, o.student_temperature)
  s, t = softmax(student_logits, o.student_temperature), softmax(teacher_logits, o.teacher_temperature)
  ids = chosen(o, s, t) if ids is None else ids
  if o.support != "full" and o.tail == "reweight":
    mass = math.fsum(s[v] for v in ids)
    return math.fsum(s[v] / mass * math.log(s[v] / t[v]) for v in ids)
  student, teacher, held = (restrict(o, ids, p) for p in (s, t, held))
  per_id = entries(o.kind, student, teacher, o.beta, o.normalised, held)
  return math.fsum(min(e, o.entry_clip) if o.entry_clip else e for e in per_id)


def gradient(o, student_logits, teacher_logits, step=1e-5):
  """Compute the gradient by the student's logits, with the chosen ids held fixed."""
  s, t = softmax(student_logits, o.student_temperature), softmax(teacher_logits, o.teacher_temperature)
  ids = chosen(o, s, t)
  if o.support != "full" and o.tail == "reweight":
    mass = math.fsum(s[v] for v in ids)
    cost = {v: s[v] / mass * math.log(s[v] / t[v]) for v in ids}
    return [(cost.get(v, 0.0) - s[v] * math.fsum(cost.values())) / o.student_temperature for v in range(len(s))]

  def moved(v, by):
    return divergence(o, [x + by * (u == v) for u, x in enumerate(student_logits)], teacher_logits, ids, student_logits)

  return [(moved(v, step) - moved(v, -step)) / (2 * step) for v in range(len(s))]
