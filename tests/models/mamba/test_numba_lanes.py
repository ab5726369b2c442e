"""The vectors of numba's loops: accuracy in units of the last place, special values, and no dependence on threads."""

import ctypes
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mamba_ops import scan_inputs, with_gradients

numba = pytest.importorskip("numba")

from cobra.models.mamba.ops import numba_lanes, numba_ops, numba_runtime  # noqa: E402
from cobra.models.mamba.ops.numba_lanes import BYTES, LANES, load, store, store_one, total  # noqa: E402

SPACING = 2.0**-24
REFERENCES = {
    "exp2": torch.exp2,
    "exp_of_minus_abs": lambda x: torch.exp(-x.abs()),
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0),
}


def over(name):
    function = getattr(numba_lanes, name)

    @numba.njit
    def run(source, target, count):
        for at in range(0, count * BYTES, BYTES):
            store(target + at, function(load(source + at)))

    def apply(x):
        out = torch.empty_like(x)
        run(x.data_ptr(), out.data_ptr(), len(x) // LANES)
        return out

    return apply


@pytest.fixture(scope="module")
def compiled():
    return {name: over(name) for name in REFERENCES}


@pytest.mark.parametrize(
    ("name", "low", "high", "units"),
    [("exp2", -126, 127, 1.2), ("exp_of_minus_abs", -80, 80, 2), ("sigmoid", -80, 80, 4), ("softplus", -80, 80, 5)],
)
def test_functions_are_accurate_to_units_of_the_last_place(compiled, name, low, high, units):
    for x in (torch.linspace(low, high, LANES * 40_000), torch.linspace(-1, 1, LANES * 40_000)):
        expected = REFERENCES[name](x.double())
        error = ((compiled[name](x).double() - expected) / expected).abs().max().item()
        assert error <= units * SPACING


@given(st.lists(st.floats(width=32, max_value=127.0), min_size=1, max_size=LANES))
@settings(max_examples=200, deadline=None)
def test_any_number_is_taken(values):
    """Infinities, zeros of both signs and numbers that are almost zero; what is below the smallest may become zero."""
    x = torch.tensor((values * LANES)[:LANES])
    for name, expected in REFERENCES.items():
        torch.testing.assert_close(
            OVER[name](x).double(), expected(x.double()), rtol=1e-6, atol=1.5e-38, equal_nan=True, msg=name
        )


OVER = {name: over(name) for name in REFERENCES}


@pytest.mark.parametrize("name", REFERENCES)
def test_what_is_not_a_number_stays_so(name, compiled):
    x = torch.zeros(LANES)
    x[3] = torch.nan
    out = compiled[name](x)
    assert out.isnan().tolist() == x.isnan().tolist()


def test_sums_are_of_all_lanes():
    @numba.njit
    def run(source, target):
        store_one(target, total(load(source)))

    x, out = torch.arange(LANES, dtype=torch.float32), torch.zeros(1)
    run(x.data_ptr(), out.data_ptr())
    assert out.item() == sum(range(LANES))


@pytest.fixture
def threads(monkeypatch):
    """Wake threads for the smallest job; return the function that sets their number."""
    monkeypatch.setattr(numba_ops, "_NUMBERS_FOR_THREADS", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(steps=37):
    inputs = scan_inputs(batch=3, steps=steps, width=80, states=16)
    outputs, gradients = with_gradients(lambda **v: numba_ops.selective_scan(**v, valid=None), inputs)
    conv = {"x": inputs["u"], "weight": torch.ones(80, 4), "bias": inputs["D"]}
    conv_outputs, conv_gradients = with_gradients(lambda **v: numba_ops.causal_conv(**v, window=None), conv)
    return [*outputs, *gradients.values(), *conv_outputs, *conv_gradients.values()]


@pytest.mark.parametrize("by", ["OpenMP", "threads of Python"])
def test_results_have_the_same_bits_by_any_number_of_threads(threads, by, monkeypatch):
    if by != "OpenMP":
        monkeypatch.setattr(numba_runtime, "_on_threads", lambda: numba_runtime._on_python_threads)
    threads(1)
    expected = everything()
    for number in (2, 3):
        threads(number)
        assert all(torch.equal(one, other) for one, other in zip(everything(), expected, strict=True))


def test_callers_at_the_same_time_do_not_disturb_each_other(threads):
    threads(2)
    expected = everything()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: everything(), range(8)):
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_tensor_of_another_device_is_refused():
    inputs = scan_inputs()
    with pytest.raises(RuntimeError, match="expected all tensors to be on the CPU, but one is on meta"):
        numba_ops.selective_scan(**inputs | {"D": inputs["D"].to("meta")}, valid=None)


def count_up(pointer):
    job = numba.carray(pointer, 1)[0]
    task = numba_runtime.next_task(job)
    while task >= 0:
        numba_lanes.fetch_add(job.target + task * 8, task + 1)
        task = numba_runtime.next_task(job)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    numba_runtime._cache_folder.cache_clear()
    yield tmp_path / "cache"
    numba_runtime._cache_folder.cache_clear()


def run_count():
    out = (ctypes.c_int64 * 5)()
    numba_runtime.Kernel(count_up).run(5, 1, {"target": ctypes.addressof(out)})
    return list(out)


def test_compiled_code_is_kept_for_the_next_process(empty_cache):
    assert run_count() == [1, 2, 3, 4, 5]
    [folder] = (empty_cache / "cobra" / "numba").iterdir()
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb*")}
    assert len(files) == 2
    assert run_count() == [1, 2, 3, 4, 5]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb*")} == files
    assert numba.config.CACHE_DIR == os.environ.get("NUMBA_CACHE_DIR", "")


def test_without_a_folder_for_it_code_is_compiled_and_that_is_told(empty_cache, caplog, monkeypatch):
    empty_cache.write_text("not a folder")
    monkeypatch.setattr(numba_runtime, "cache_folders", lambda: iter([empty_cache / "cobra"]))
    with caplog.at_level(logging.WARNING):
        assert run_count() == [1, 2, 3, 4, 5]
    [record] = caplog.records
    assert "takes the compiled loops of Mamba: each process compiles them" in record.message


def test_a_full_disk_costs_the_cache_alone(empty_cache, caplog, monkeypatch):
    def full(self, *args):
        raise OSError("No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    with caplog.at_level(logging.WARNING):
        assert run_count() == [1, 2, 3, 4, 5]
    assert "No space left on device" in caplog.text


@pytest.mark.fault("B1")
def test_compiled_code_is_not_taken_from_a_folder_that_everybody_writes_to(empty_cache, monkeypatch):
    """Numba unpickles what it finds there."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(empty_cache))
    folder = numba_runtime._cache_folder()
    assert folder is not None and folder.parent == empty_cache
    folder.chmod(0o777)
    numba_runtime._cache_folder.cache_clear()
    assert numba_runtime._cache_folder() is None
    assert run_count() == [1, 2, 3, 4, 5]
