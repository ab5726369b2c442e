"""Train a vision-language model: `torchrun --standalone --nproc-per-node N scripts/pretrain.py --help`."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from cobra.training.pretrain import PretrainConfig, pretrain
from cobra.util.cli import run


def main(config: PretrainConfig) -> None:
    """Run one stage of training."""
    pretrain(config)


if __name__ == "__main__":
    run(main, PretrainConfig)
