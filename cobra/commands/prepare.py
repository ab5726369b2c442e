"""Prepare LLaVA-CoT-100k for training: fetch, unpack, convert, check, report.

Works in `{dataset_root}/download/llava-cot-100k/` and resumes where an earlier run has stopped.
"""

from cobra.commands.base import Command
from cobra.preprocessing.llava_cot import PrepareConfig
from cobra.util.help_text import Usage
from cobra.util.numbers import counted, share
from cobra.util.program import command_line, names_next_commands
from cobra.util.waiting import loading


def main(config: PrepareConfig) -> int:
    """Prepare and report; 1 where no usable row came out, or too many were rejected."""
    with loading():
        from rich.console import Console

        from cobra.preprocessing.llava_cot import prepare

    report = prepare(config)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    report.show(console)
    folder = config.dataset_root / "download" / "llava-cot-100k"
    if not report.rows_written:
        console.print(f"no row is usable; the reasons are in {folder / 'rejected.jsonl'}", style="red")
        return 1
    console.print(
        f"ready: {counted(report.rows_written, 'row')} in {folder / 'llava_cot_100k.json'}, and "
        f"{report.rows_held_out:,} held out in llava_cot_100k_holdout.json; what is in them: {folder / 'report.html'}"
    )
    if report.text_only:
        written = report.rows_written + report.rows_held_out
        console.print(f"text only: {report.text_only:,} of these {counted(written, 'row')}, which name no image")
    if report.rejected_share > config.max_rejected:
        console.print(
            f"{share(report.rejected_share, 1)} of the rows were rejected, more than --max_rejected "
            f"{config.max_rejected:g} allows; the reasons are in {folder / 'rejected.jsonl'}",
            style="red",
        )
        return 1
    if names_next_commands():
        rows = ("--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(config.dataset_root))
        console.print(f"next, plan a training on them: {command_line('train', *rows, '--dry_run')}")
    return 0


COMMAND = Command(
    main,
    PrepareConfig,
    Usage(
        "prepare",
        ("--dataset_root data", "--dataset_root data --sources sqa,chartqa", "--dataset_root data --holdout null"),
    ),
)
