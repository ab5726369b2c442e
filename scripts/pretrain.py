"""Train a vision-language model: `torchrun --standalone --nproc-per-node N scripts/pretrain.py --help`."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.train import PRETRAIN as COMMAND

if __name__ == "__main__":
    COMMAND.run()
