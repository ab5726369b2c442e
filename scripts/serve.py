"""Talk to a model on a page in the browser: `python scripts/serve.py --model_path cobra-tiny`."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.serve import COMMAND

if __name__ == "__main__":
    COMMAND.run()
