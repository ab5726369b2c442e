"""Train a vision-language model: `torchrun --standalone --nproc-per-node N scripts/pretrain.py --help`."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from cobra.training.config import PretrainConfig
from cobra.util.cli import run


def main(config: PretrainConfig) -> int:
    """Run one stage of training; return 75 (130 for the keyboard) where a request to stop has ended it."""
    # Here, so that --help needs no torch.
    from cobra.training.preemption import Stopped
    from cobra.training.pretrain import pretrain

    try:
        pretrain(config)
    except Stopped as stopped:
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    run(main, PretrainConfig)
