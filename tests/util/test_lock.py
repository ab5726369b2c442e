"""One process at a time in a folder: who is there is named, and whoever has gone keeps nobody out."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from lock_holder import start_holder

from cobra.demo.config import DemoConfig
from cobra.demo.run import run_demo
from cobra.evaluation.benchmark import benchmark
from cobra.evaluation.config import BenchmarkConfig
from cobra.util import lock
from cobra.util.errors import UserError
from cobra.util.lock import LOCK, SILENT_SECONDS, Holder, hold

pytestmark = pytest.mark.fault("A7")


@pytest.fixture
def holder(tmp_path):
    process = start_holder(tmp_path / "run")
    yield process
    process.kill()
    process.wait()


def take(folder) -> None:
    with hold(folder, "another start works", pytest.fail):
        pass


def test_a_second_start_is_told_who_is_there(tmp_path, holder):
    with pytest.raises(UserError) as refused:
        take(tmp_path / "run")
    told = str(refused.value)
    assert told.startswith(f"another start works in {tmp_path / 'run'} already: process {holder.pid} on ")
    assert f"-c {tmp_path / 'run'}. Wait until it has ended, or end it" in told


@pytest.mark.parametrize("locks", [True, False])
def test_after_a_kill_the_next_start_goes_on_at_once(tmp_path, holder, monkeypatch, locks):
    """Also where the file system has no locks; nor does a process that has its number now keep it out."""
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse_locks)
        with pytest.raises(UserError, match=f"process {holder.pid} "):
            take(tmp_path / "run")
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    values = json.loads((tmp_path / "run" / LOCK).read_text())
    (tmp_path / "run" / LOCK).write_text(json.dumps(values | {"pid": os.getpid()}))
    take(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def refuse_locks(handle, operation):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


@pytest.mark.parametrize("name", ["run", "new/run"])
def test_of_starts_at_the_same_moment_one_goes_on(tmp_path, name):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()

    def start():
        barrier.wait()
        try:
            with hold(tmp_path / name, "another start works"):
                results.put("held")
                barrier.wait(60)
        except UserError as error:
            results.put(str(error))
            barrier.wait(60)

    processes = [context.Process(target=start) for _ in range(6)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found.count("held") == 1
    assert sum("another start works in" in text for text in found) == 5
    assert not [*tmp_path.iterdir()]


def test_who_finds_a_folder_being_made_finds_its_holder_there(tmp_path, monkeypatch):
    """A start that makes no folder is not the one to remove it, so it must not take one that another is making."""
    rename, others = Path.rename, []

    def rename_late(path, target):
        assert not [*tmp_path.glob("new*")]
        rename(path, target)
        with pytest.raises(UserError, match=f"process {os.getpid()} "):
            take(tmp_path / "new" / "run")
        others.append("refused")

    monkeypatch.setattr(Path, "rename", rename_late)
    take(tmp_path / "new" / "run")
    assert others == ["refused"] and not [*tmp_path.iterdir()]


def test_processes_that_are_forked_do_not_hold_on(tmp_path):
    """As data workers, which outlive a training process by seconds."""
    context = multiprocessing.get_context("fork")
    with hold(tmp_path, "a test works"):
        child = context.Process(target=time.sleep, args=(600,))
        child.start()
    try:
        take(tmp_path)
    finally:
        child.kill()
        child.join()


def test_what_was_there_stays_and_what_was_made_goes(tmp_path):
    take(tmp_path / "new" / "run")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "file").touch()
    take(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_error_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path, "a test works"):
        raise ZeroDivisionError
    take(tmp_path)


def elsewhere(folder, **changes) -> str:
    """Leave the file of a holder on another machine; return its text."""
    other = replace(Holder.this_process(), host="node7", boot="another", pid=4711, command="pretrain.py --x", **changes)
    text = json.dumps(asdict(other))
    (folder / LOCK).write_text(text)
    return text


def test_a_holder_on_another_machine_that_is_heard_keeps_others_out(tmp_path, monkeypatch):
    """Where the system's lock does not reach across machines."""
    elsewhere(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.utime(tmp_path / LOCK))
    said = []
    with pytest.raises(UserError, match=r"process 4711 on node7, begun \S+: pretrain.py --x. Wait .* end it there"):
        with hold(tmp_path, "another start works", said.append):
            pass
    assert len(said) == 1 and "waiting up to 60 s for a sign of process 4711 on node7" in said[0]


def test_a_holder_on_another_machine_whose_lock_is_seen_is_told_of_at_once(tmp_path):
    elsewhere(tmp_path)
    with (tmp_path / LOCK).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="process 4711 on node7"):
            take(tmp_path)


@pytest.mark.parametrize("kept", [False, True])
def test_a_holder_on_another_machine_that_has_long_been_silent_is_gone(tmp_path, kept):
    """Also where the file server has kept the lock of a machine that is no more."""
    elsewhere(tmp_path)
    past = time.time() - SILENT_SECONDS - 5
    os.utime(tmp_path / LOCK, (past, past))
    with (tmp_path / LOCK).open("r+") as file:
        if kept:
            fcntl.flock(file, fcntl.LOCK_EX)
        take(tmp_path)


def test_a_holder_on_another_machine_is_given_a_minute(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    waited, now = [], time.monotonic()
    monkeypatch.setattr(lock.time, "sleep", waited.append)
    monkeypatch.setattr(lock.time, "monotonic", lambda: now + sum(waited))
    said = []
    with hold(tmp_path, "another start works", said.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert SILENT_SECONDS - 5 <= sum(waited) <= SILENT_SECONDS + 1 and len(said) == 1


def test_another_container_of_this_machine_that_has_ended_keeps_nobody_out(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(Holder.this_process(), processes="pid:[1]", pid=1))))
    take(tmp_path)


def test_the_holder_is_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.01)
    with hold(tmp_path, "a test works"):
        os.utime(tmp_path / LOCK, (1, 1))
        end = time.monotonic() + 60
        while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1


@pytest.mark.fault("F7")
def test_the_holder_is_heard_where_times_cannot_be_set(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    touch = os.utime
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(os, "utime", refused)
    with hold(tmp_path, "a test works") as held:
        touch(tmp_path / LOCK, (1, 1))
        end = time.monotonic() + 60
        while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        held.confirm("another start works")


def test_who_was_first_learns_that_another_has_come(tmp_path, monkeypatch):
    """Two starts on two machines at the same moment, without locks."""
    monkeypatch.setattr(fcntl, "flock", refuse_locks)
    with hold(tmp_path, "a test works") as held:
        held.confirm("another start works")
        text = elsewhere(tmp_path, token="theirs")
        with pytest.raises(UserError, match=r"another start works in .* already: process 4711 on node7"):
            held.confirm("another start works")
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text(text)
    assert (tmp_path / LOCK).read_text() == text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff", b"[" * 100_000, b'{"a": "' + b"x" * 100_000]
)
def test_a_file_that_names_nobody_keeps_nobody_out(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    take(tmp_path)


def test_what_a_strangers_file_says_does_not_reach_the_terminal(tmp_path):
    elsewhere(tmp_path, started="\x1b[2J" + "x" * 1000)
    with (tmp_path / LOCK).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError) as refused:
            take(tmp_path)
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.fault("A10")
def test_a_folder_that_takes_no_files_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run cannot be used \(Not a directory\)"):
        take(tmp_path / "file" / "run")


def test_benchmarks_and_demonstrations_are_alone_too(tmp_path, holder):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=f"another benchmark is at work in {folder} already: process {holder.pid}"):
        benchmark(BenchmarkConfig(checkpoint="cobra-tiny", output_dir=folder, device="cpu"))
    with pytest.raises(UserError, match=f"another demonstration runs in {folder} already: process {holder.pid}"):
        run_demo(DemoConfig(folder))
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_stopped_process_is_still_there(tmp_path, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=f"process {holder.pid} "):
        take(tmp_path / "run")


@pytest.mark.fault("B1")
@pytest.mark.parametrize("kind", ["file", "nothing", "pipe"])
def test_a_strangers_link_is_not_written_through(tmp_path, kind):
    precious, folder = tmp_path / "precious", tmp_path / "run"
    folder.mkdir()
    if kind == "file":
        precious.write_text("mine")
    if kind == "pipe":
        os.mkfifo(folder / LOCK)
    else:
        (folder / LOCK).symlink_to(precious)
    with pytest.raises(UserError, match="is a link, or no plain file"), hold(folder, "another run is training"):
        pass
    assert precious.read_text() == "mine" if kind == "file" else not precious.exists()
