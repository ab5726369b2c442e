"""Run the demonstration on rendered scenes, from the data to the scores; `make demo` calls this."""

from cobra.demo.run import DemoConfig, run_demo
from cobra.util.cli import run


def main(config: DemoConfig) -> None:
    """Run it."""
    run_demo(config)


if __name__ == "__main__":
    run(main, DemoConfig)
