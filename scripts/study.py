"""Train the arms of a study, score them alike, and give a verdict; `make study` calls this on rendered scenes."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.study import COMMAND

if __name__ == "__main__":
    COMMAND.run()
