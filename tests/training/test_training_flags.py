"""The flags of training: parsed, and printed by --help, without torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["cobra.training.config", "cobra.conf", "cobra.training"])
def test_flags_are_there_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_of_pretrain_needs_no_torch():
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['pretrain.py', '--help', 'all']\n"
        "runpy.run_path('scripts/pretrain.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--lora.rank" in done.stdout and "--plan.gpu_memory" in done.stdout
