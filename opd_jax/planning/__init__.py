"""What a run would need on devices that are not here: compiled programs read, counted and judged."""
