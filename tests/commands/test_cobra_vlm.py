"""`cobra-vlm`: every command is found at once, its help is short, and messages name what the user has."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest

from cobra.__main__ import main
from cobra.commands import NAMES, find_command
from cobra.commands.mix import LRV, LVIS
from cobra.commands.train import PRETRAIN, TrainConfig, start
from cobra.util import cli, program
from cobra.util.errors import UserError
from cobra.util.flags import flags_of


@pytest.fixture
def wheel(monkeypatch):
    """The package as it is where it was installed without its repository."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cobra-vlm"])


def exit_of(capsys, *arguments):
    """Return the exit code of a command line, and what it prints."""
    sys.argv[1:] = arguments
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, *capsys.readouterr()


def test_without_a_command_all_are_listed(wheel, capsys):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        code, out, err = exit_of(capsys, *arguments)
        assert (code, err) == (0, "")
        assert all(f"\n  {name} " in out for name in NAMES)


def test_an_unknown_command_gets_the_nearest(wheel, capsys):
    code, out, err = exit_of(capsys, "trian")
    assert (code, out) == (2, "") and "Did you mean train?" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_a_screen_and_the_rest_is_named(wheel, capsys, name):
    code, out, _ = exit_of(capsys, name, "--help")
    assert code == 0 and out.startswith(f"usage: cobra-vlm {name} ")
    assert 2 <= out.count(f"\n  cobra-vlm {name}") <= 3
    assert "python " not in out and "scripts/" not in out
    command = find_command(name)
    flags = flags_of(command.config_class)
    assert set(command.usage.common) <= set(flags)
    assert out.count("\n  --") <= 20 and ("--help all" in out) == bool(command.usage.common)
    _, everything, _ = exit_of(capsys, name, "--help", "all")
    assert everything.count("\n  --") == len(flags)


def test_the_scripts_help_is_as_short(capsys):
    for command in (PRETRAIN, LVIS, LRV):
        with pytest.raises(SystemExit) as stop:
            command.run(["--help"])
        assert stop.value.code == 0 and "usage: python scripts/" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_examples_parse(wheel, name):
    command = find_command(name)
    for example in command.usage.examples:
        words = shlex.split(example.partition(" > ")[0].partition(" >> ")[0])
        cli.parse(command.config_class, words, command.usage.positional)


def test_no_command_imports_torch_before_its_flags_are_read():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['cobra-vlm']\n"
        "from cobra.commands import NAMES, find_command\n"
        "for name in NAMES: find_command(name)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_messages_name_the_command_that_the_user_has(wheel, capsys, monkeypatch):
    text = "run python scripts/pretrain.py, scripts/pretrain.py or benchmark.py; not my/benchmark.py"
    renamed = "run cobra-vlm train, cobra-vlm train or cobra-vlm benchmark; not my/benchmark.py"
    assert program.as_installed(text) == renamed
    assert program.command_line("train", "--seed", "1", processes=2) == "cobra-vlm train --nproc 2 --seed 1"
    assert program.program("prepare") == [sys.executable, "-m", "cobra", "prepare"]

    def fails(config):
        raise UserError(text)

    with pytest.raises(SystemExit):
        cli.run(fails, TrainConfig, [])
    assert capsys.readouterr().err == f"error: {renamed}\n"
    monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py"])
    assert program.as_installed(text) == text
    assert program.command_line("prepare", "--dataset_root", "a b") == (
        "python fine_tune/prepare_llava_cot.py --dataset_root 'a b'"
    )
    assert program.command_line("train", processes=2) == (
        "torchrun --standalone --nnodes 1 --nproc-per-node 2 scripts/pretrain.py"
    )


def test_several_processes_run_through_torchrun_and_one_here(wheel, monkeypatch):
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    monkeypatch.setattr("cobra.commands.train.main", lambda config: started.append(config) or 0)
    sys.argv[1:] = ["train", "--nproc", "2", "--seed", "3"]
    start(cli.parse(TrainConfig, sys.argv[2:]))
    torchrun = started.pop()
    assert (torchrun.module, torchrun.training_script, torchrun.nproc_per_node) == (True, "cobra", "2")
    assert torchrun.training_script_args == ["train", "--seed", "3"]
    for given in (["--nproc", "1"], ["--nproc", "2", "--dry_run"]):
        assert start(cli.parse(TrainConfig, given)) == 0
        assert "nproc" not in {field.name for field in fields(started.pop())}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start(cli.parse(TrainConfig, ["--nproc", "2"])) == 0
    for wrong in ("0", "-1", "two"):
        with pytest.raises(UserError, match="--nproc"):
            start(cli.parse(TrainConfig, ["--nproc", wrong]))


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_completion_holds_commands_and_flags(wheel, capsys, shell):
    code, out, err = exit_of(capsys, "completion", shell)
    assert (code, err) == (0, "")
    assert all(word in out for word in ("benchmark", "dataset_root", "cobra-tiny"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=out, text=True, check=True)
    assert exit_of(capsys, "completion", "korn")[0] == 2


def test_what_a_process_fails_with_is_said_once_and_is_the_exit_code(tmp_path):
    rows = "--dataset.type custom --dataset.dataset_root_dir absent --model.type cobra-tiny".split()
    command = [sys.executable, "-m", "cobra", "train", "--nproc", "2", *rows]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: the annotation file of custom" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.fault("E2")
def test_torchruns_report_holds_the_message(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        cli.run(lambda config: None, TrainConfig, ["--sed", "1"])
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["extraInfo"]["py_callstack"] == message["message"] != ""


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "cobra", "train", "--sed", "1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: --sed is unknown: did you mean --seed? --help all lists the flags\n"
    assert done.stdout == ""


@pytest.mark.fault("E10")
@pytest.mark.parametrize("arguments", [["train", "--help", "all"], ["completion", "bash"]])
def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word(arguments, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cobra", *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
