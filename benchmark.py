"""Score a model's captions against human ones: `python benchmark.py --checkpoint CHECKPOINT`."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.benchmark import COMMAND

if __name__ == "__main__":
    COMMAND.run()
