"""Run the demonstration on rendered scenes, from the data to the scores; `make demo` calls this."""

from cobra.demo.config import DemoConfig
from cobra.util.cli import run


def main(config: DemoConfig) -> None:
    """Run the demonstration."""
    from cobra.demo.run import run_demo

    run_demo(config)


if __name__ == "__main__":
    run(main, DemoConfig)
