"""`cobra-vlm doctor`: each thing is one line, what is wrong comes with the command that mends it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from cobra.commands.doctor import COMMAND, DoctorConfig, main
from cobra.doctor import cached, kernels, machine, network, software
from cobra.util.errors import UserError


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_json_and_lines_say_the_same(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(DoctorConfig(json=True))
    told = json.loads(capsys.readouterr().out)
    assert code == int(told["problems"] > 0)
    assert main(DoctorConfig()) == code
    lines = capsys.readouterr().out
    for finding in told["findings"]:
        assert finding["name"] in lines and finding["text"] in lines and finding["remedy"] in lines
        assert finding["state"] in ("ok", "note", "problem") and "\n" not in finding["text"]
    names = {finding["name"] for finding in told["findings"]}
    assert {"python", "packages", "machine", "disk", "gpu", "compiler", "cpu kernels", "network", "weights"} <= names


def test_torch_is_not_imported():
    code = "import sys; sys.modules['torch'] = None\nimport cobra.commands.doctor as d; d.main(d.DoctorConfig())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr


def test_an_old_package_and_an_absent_one_are_named(monkeypatch):
    monkeypatch.setattr(
        software, "requires", lambda name: ["torch>=999", "numpy>=1", "no-such-package", "numba>=0; extra == 'fast'"]
    )
    findings = by_name(software.examine_software())
    assert findings["packages"].state == "problem" and findings["packages"].remedy == "pip install --upgrade cobra-vlm"
    assert "no-such-package is not installed" in findings["packages"].text
    assert f"torch {torch.__version__.split('+')[0]}" in findings["packages"].text
    assert "numpy" not in findings["packages"].text and findings["extra fast"].state == "ok"


def test_the_build_of_torch_is_read_without_importing_it():
    assert software.torch_build() == (torch.version.cuda, torch.version.hip)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """The driver's tool, which lists what the test says."""

    def install(*lines):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_gpus_are_listed(driver, monkeypatch, tmp_path):
    driver("NVIDIA H100 80GB HBM3, 580.65.06, 81559", "NVIDIA H100 80GB HBM3, 580.65.06, 81559")
    monkeypatch.setattr(machine, "torch_build", lambda: ("13.0", None))
    findings = list(machine.examine_machine(tmp_path))
    gpus = [finding.text for finding in findings if finding.name == "gpu"]
    assert gpus == ["NVIDIA H100 80GB HBM3, 80 GiB, driver 580.65.06"] * 2
    assert by_name(findings)["torch build"].text == "CUDA 13.0" and "driver" not in by_name(findings)


@pytest.mark.parametrize(
    ("line", "build", "name", "part"),
    [
        ("NVIDIA A100, 570.1, 40960", ("13.0", None), "driver", "older than 580"),
        ("NVIDIA A100, 580.1, 40960", (None, None), "torch build", "without CUDA"),
        ("No devices were found", ("13.0", None), "gpu", "lists no GPU"),
    ],
)
def test_what_keeps_torch_from_a_gpu_is_a_problem(driver, monkeypatch, tmp_path, line, build, name, part):
    driver(line)
    monkeypatch.setattr(machine, "torch_build", lambda: build)
    finding = by_name(machine.examine_machine(tmp_path))[name]
    assert finding.state == "problem" and part in finding.text and finding.remedy


def test_little_space_is_told(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 64 << 20})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    findings = by_name(machine.examine_machine(tmp_path / "not" / "there"))
    assert findings["shared memory"].state == "problem" and "--shm-size" in findings["shared memory"].remedy
    assert findings["disk"].state == "note" and str(tmp_path) in findings["disk"].text


def test_a_job_of_slurm_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert by_name(machine.examine_machine(tmp_path))["job"].text == "Slurm job 4711: SLURM_NTASKS 8"


@pytest.fixture
def online(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "DATASET_REGISTRY", {})


class Refuses(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *_):
        pass


def test_a_server_that_answers_anything_is_there(online, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert by_name(network.examine_network("none", 5))["network"].state == "ok"
    server.shutdown()
    server.server_close()
    finding = by_name(network.examine_network("none", 5))["hub"]
    assert finding.state == "note" and "refused" in finding.text and "fetch" in finding.remedy


def test_a_name_that_is_looked_up_for_ever_costs_the_timeout(online, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(network.requests, "head", lambda *_, **__: release.wait(30))
    assert "nothing within 0.1 s" in by_name(network.examine_network("none", 0.1))["hub"].text
    release.set()


def test_offline_and_wrong_variables(online, monkeypatch):
    monkeypatch.setattr(network.requests, "head", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in by_name(network.examine_network("none", 1))["network"].text
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy:1")
    assert by_name(network.examine_network("none", 1))["network"].state == "problem"


def test_weights_in_the_cache_are_found_and_others_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--han1997--cobra" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "ab").write_bytes(b"x" * 1000)
    there, absent = cached.examine_cache("cobra+3b")
    assert there.state == "ok" and there.text.startswith("han1997/cobra: 0.0 GiB")
    for name in ("xiuyul/mamba-2.8b-zephyr", "timm/vit_so400m_patch14_siglip_384.webli", "timm/vit_large"):
        assert name in absent.text
    assert absent.remedy.startswith("cobra-vlm fetch cobra+3b")
    assert not list(cached.examine_cache("cobra-tiny"))
    with pytest.raises(UserError, match="cobra-tiny"):
        list(cached.examine_cache("cobra-tinny"))


def test_the_hubs_own_variables_decide_where_the_cache_is(monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    for variables in ({}, {"XDG_CACHE_HOME": "/x"}, {"HF_HOME": "/y"}, {"HF_HOME": "/y", "HF_HUB_CACHE": "/z"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert str(cached.cache_root()) == done.stdout.strip()


@pytest.mark.fault("E1")
def test_kernels_are_tried_where_there_is_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "_DEVICES", (str(tmp_path),))
    finding = by_name(kernels.examine_kernels())["gpu kernels"]
    assert finding.state == "problem" and finding.remedy.startswith("COBRA_MAMBA_OP=torch")
    monkeypatch.setattr(
        kernels,
        "_TRIAL",
        kernels._TRIAL.replace('"cuda"', '"cpu"').replace(".cuda()", "").replace("torch.cuda.get_device_name()", "1"),
    )
    finding = by_name(kernels.examine_kernels())["gpu kernels"]
    assert finding.state == "ok" and "0.0e+00" in finding.text
    monkeypatch.setenv("COBRA_MAMBA_OP", "torch")
    finding = by_name(kernels.examine_kernels())["gpu kernels"]
    assert finding.state == "note" and finding.text.endswith("which are slower: COBRA_MAMBA_OP names them")
    assert "bring Triton" in finding.remedy and "apt install gcc" in finding.remedy


def test_a_problem_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy:1")
    with pytest.raises(SystemExit) as stop:
        COMMAND.run(["--json"])
    assert stop.value.code == 1 and json.loads(capsys.readouterr().out)["problems"] >= 1
