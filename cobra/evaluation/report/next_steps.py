"""Commands that a reader of the results may go on with."""

from cobra.evaluation.report.results import Results
from cobra.util.program import command_line


def next_steps(results: Results) -> list[tuple[str, str]]:
    """Return pairs of a purpose and its command, for the model that was scored last; none where no model was."""
    checkpoints = [entry["checkpoint"] for entry in results.about.get("checkpoints", {}).values()]
    if not checkpoints:
        return []
    model = checkpoints[-1]
    return [
        ("ask it about pictures, in a browser", command_line("serve", "--model_path", model)),
        ("write it as one folder, to pass on", command_line("export", "--checkpoint", model, "--output", "exported")),
    ]
