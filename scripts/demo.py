"""Run the demonstration on rendered scenes, from the data to the scores; `make demo` calls this."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.demo import COMMAND

if __name__ == "__main__":
    COMMAND.run()
