"""Merge LRV-Instruct into LLaVA v1.5's rows, for `--dataset.type llava-lrv` and `llava-lvis4v-lrv`."""

from cobra.commands.mix import LRV as COMMAND

if __name__ == "__main__":
    COMMAND.run()
