"""Prepare LLaVA-CoT-100k for training: fetch, unpack, convert, check, report.

Works in `{dataset_root}/download/llava-cot-100k/` and resumes where an earlier run has stopped.
"""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.prepare import COMMAND

if __name__ == "__main__":
    COMMAND.run()
