"""Flags of `scripts/demo.py`; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class DemoConfig:
    """Run the demonstration on rendered scenes, from the data to the scores; about three minutes on two cores."""

    output_dir: Path = Path("runs/demo")
    """Folder of everything written; the files of an earlier demonstration in it are removed first."""
    rows: int = 12_000
    """Training rows in the form of LLaVA-CoT-100k."""
    steps: int = 500
    """Optimiser steps of the fine-tuning."""
    learning_rate: float = 2e-3
    """Peak learning rate of the fine-tuning."""
    batch_size: int = 32
    """Rows of one step, over both processes."""
    caption_images: int = 60
    """Held-out images whose captions are scored."""
    questions: int = 350
    """Held-out questions, seven kinds in equal shares."""
    seed: int = 7
    """Seed for the data and the training."""
