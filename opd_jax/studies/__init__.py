"""Questions asked of many runs: what was claimed beforehand, what was measured, and what follows from it."""
