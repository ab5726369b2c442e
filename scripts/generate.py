"""Talk to a model about images: `python scripts/generate.py --model_path cobra-tiny`."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.generate import COMMAND

if __name__ == "__main__":
    COMMAND.run()
