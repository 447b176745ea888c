"""Language models as pure functions over parameter pytrees. Nothing here knows about distillation."""
