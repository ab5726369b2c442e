"""A GPU that is not there: Triton compiles and launches for it as for a real one, and the launches are noted."""

import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (75, 80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass
class Launch:
    """One launch: the kernel's name, its grid, what it was given for its parameters, and the compiled kernel."""

    name: str
    grid: tuple[int, int, int]
    args: dict[str, object]
    signature: dict[str, str]
    kernel: object = None


@dataclass
class Resources:
    """What a compiled kernel takes of a GPU; stack and spills in bytes a thread, shared memory in bytes a program."""

    registers: int
    stack: int
    spills: int
    shared: int


@dataclass
class Stub(DriverBase):
    """Triton's driver of a GPU of the given architecture."""

    target: GPUTarget
    launches: list[Launch] = field(default_factory=list)

    def __post_init__(self):
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (None, name, 0, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 99 * 1024},
        )
        self.launcher_cls = self._launcher

    def _launcher(self, src, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *args):
            assert len(args) == len(src.fn.arg_names), "as many arguments as parameters"
            assert 0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16, "a grid that a GPU takes"
            given = dict(zip(src.fn.arg_names, args, strict=True))
            self.launches.append(Launch(src.fn.__name__, (x, y, z), given, dict(src.signature)))

        return launch

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        raise NotImplementedError

    def get_benchmarker(self):
        raise NotImplementedError

    def get_active_torch_device(self):
        raise NotImplementedError

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        # Compiled kernels are kept by device: one of another architecture is another device.
        return self.target.arch

    def get_current_stream(self, device):
        return 0


@contextmanager
def stub_gpu(name):
    """Let Triton find a GPU of a target's name; yield the stub, whose `launches` grow."""
    stub, before = Stub(TARGETS[name]), driver._active
    driver.set_active(stub)
    try:
        yield stub
    finally:
        driver._active = before


def compiled(function, name):
    """Return the kernels of a module's function that were compiled for a target so far, as Triton keeps them."""
    return list(function.device_caches[TARGETS[name].arch][0].values())


def resources(kernel):
    """Return what a compiled kernel takes, as the vendor's tools tell it."""
    shared = kernel.metadata.shared
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        values = [int(re.search(rf"\.{key}:\s*(\d+)", text)[1]) for key in
                  ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")]  # fmt: skip
        return Resources(*values, shared)
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    return Resources(numbers["REG"], numbers["STACK"], numbers["LOCAL"], shared)
