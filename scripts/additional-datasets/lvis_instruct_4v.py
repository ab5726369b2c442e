"""Merge LVIS-Instruct-4V into LLaVA v1.5's rows, for `--dataset.type llava-lvis4v`."""

from cobra.commands.mix import LVIS as COMMAND

if __name__ == "__main__":
    COMMAND.run()
