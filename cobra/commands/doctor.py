"""Examine the machine before a run: software, hardware, network, caches."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cobra.commands.base import Command
from cobra.doctor.cached import examine_cache
from cobra.doctor.finding import Finding, print_findings
from cobra.doctor.kernels import examine_kernels
from cobra.doctor.machine import examine_machine
from cobra.doctor.network import examine_network
from cobra.doctor.software import examine_software
from cobra.util.help_text import Usage
from cobra.util.home_paths import PathText


@dataclass
class DoctorConfig:
    """Examine the machine before a run: one line for each thing, with the command that mends it."""

    json: bool = False
    """Print one JSON object in place of lines: `{"problems": N, "findings": [{"name", "state", "text", "remedy"}]}`."""
    model: str = "cobra+3b"
    """Model whose files are looked for in the hub's cache."""
    run_root_dir: Path = Path("runs")
    """Folder on the disk that runs are written to."""
    hf_token: PathText = ".hf_token"
    """Environment variable or file that holds the hub's token."""
    timeout: float = 0.6
    """Seconds to wait for the servers of models and data, all at once; far away, 5 tells more."""


def main(config: DoctorConfig) -> int:
    """Examine and print; return 1 where a problem was found."""
    findings = list(_examine(config))
    problems = sum(finding.state == "problem" for finding in findings)
    if config.json:
        print(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print_findings(findings)
    return int(problems > 0)


def _examine(config: DoctorConfig) -> Iterable[Finding]:
    yield from examine_software()
    yield from examine_machine(config.run_root_dir)
    yield from examine_kernels()
    yield from examine_network(config.hf_token, config.timeout)
    yield from examine_cache(config.model)


COMMAND = Command(main, DoctorConfig, Usage("doctor", ("", "--json", "--model cobra-tiny --timeout 5")))
