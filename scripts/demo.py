"""Run the demonstration on rendered scenes, from the data to the scores; `make demo` calls this."""

from cobra.commands.demo import COMMAND

if __name__ == "__main__":
    COMMAND.run()
