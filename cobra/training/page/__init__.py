"""The page of a run, `run.html`: its curves, its answers about held-out rows, its state and its settings."""
