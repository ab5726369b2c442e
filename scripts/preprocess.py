"""Fetch a data set and unpack it into `{root_dir}/download/{dataset_id}/`; a rerun resumes where it stopped."""

from cobra.util.waiting import loading

with loading():
    from cobra.commands.preprocess import COMMAND

if __name__ == "__main__":
    COMMAND.run()
