"""Write a trained model as one folder, adapters merged: `python scripts/export.py --checkpoint RUN --output FOLDER`."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.export import COMMAND

if __name__ == "__main__":
    COMMAND.run()
