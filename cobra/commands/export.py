"""Write a trained model as one folder, adapters merged."""

from cobra.commands.base import Command
from cobra.export.config import ExportConfig
from cobra.util.ending import end_in_order
from cobra.util.help_text import Usage
from cobra.util.waiting import loading


def main(config: ExportConfig) -> None:
    """Write the folder, and upload it where that is asked for."""
    with loading():
        from cobra.export.export import export

    # A model of 3 billion parameters takes 10 GB beside the output until it is whole.
    with end_in_order():
        export(config)


COMMAND = Command(
    main,
    ExportConfig,
    Usage(
        "export",
        (
            "--checkpoint runs/my-run --output exported",
            "--checkpoint runs/my-run --output exported --format safetensors",
            "--checkpoint runs/my-run --output exported --push_to me/my-cobra",
        ),
        positional="checkpoint",
    ),
)
