"""Run the demonstration on rendered scenes, from the data to the scores."""

from cobra.commands.base import Command
from cobra.demo.config import DemoConfig
from cobra.util.help_text import Usage
from cobra.util.waiting import loading


def main(config: DemoConfig) -> None:
    """Run the demonstration."""
    with loading():
        from cobra.demo.run import run_demo
    run_demo(config)


COMMAND = Command(main, DemoConfig, Usage("demo", ("", "--steps 60 --rows 1200", "--output_dir runs/demo-2")))
