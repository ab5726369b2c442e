"""Check data before a run: every row and image, and what training would do with them."""

from cobra.check.config import CheckConfig
from cobra.commands.base import Command
from cobra.doctor.finding import print_findings
from cobra.util.help_text import Usage
from cobra.util.waiting import loading


def main(config: CheckConfig) -> int:
    """Check, write where that is asked for, and print; return 1 where training would refuse the rows."""
    # It brings Arrow, Pillow and transformers.
    with loading():
        from cobra.check.run import check

    report = check(config)
    if config.json:
        print(report.to_json())
    else:
        print_findings(report.findings())
    return int(report.problems > 0)


COMMAND = Command(
    main,
    CheckConfig,
    Usage(
        "check", ("my", "my/rows.csv --write my/rows.json", "my/rows.json --holdout my/holdout.json"), positional="data"
    ),
)
