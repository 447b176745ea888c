"""On-policy distillation in JAX: the student speaks, the teacher answers at every token."""

__version__ = "0.1.0"
