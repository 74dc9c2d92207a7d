"""Run folders: a writer killed at any moment leaves the run that was there, or the new one, never a mix."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentzoo.inference.base import run_folder as runs
from latentzoo.inference.base.run_files import RUN_FILE
from latentzoo.inference.base.run_folder import read_run, write_run

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the writer that it kills")

# A process that imports torch once, which takes seconds, and forks a writer for each line that it is given.
# "loop": write runs until killed. A number k: write run 1, and die, as if killed, at the k-th of the moments before
# and after a call that touches the disk.
WRITER = """
import os, sys
import torch

sys.path.insert(0, sys.argv[1])  # the package alone, without what the library's root imports
from base import run_folder as runs
count = 0

def write(step):
    arrays = {"x": torch.full((40_000,), float(step)), "y": torch.tensor(step)}
    runs.write_run(sys.argv[2], arrays, {"step": step, "pad": [step] * 500})

def die_at(k, module, name):
    call = getattr(module, name)
    def counted(*args, **kwargs):
        global count
        count += 1
        if count == k:
            os._exit(9)
        result = call(*args, **kwargs)
        count += 1
        if count == k:
            os._exit(9)
        return result
    setattr(module, name, counted)

torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        if line.strip() == "loop":
            step = 0
            while True:
                write(step)
                step += 1
        runs.open = open
        for module, name in ((runs, "open"), (os, "open"), (os, "fsync"), (os, "replace"), (os, "unlink")):
            die_at(int(line), module, name)
        write(1)
        os._exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


# Rounds of two writers into one folder, and a reader beside them; a line for each round: how the three ended, the step
# of the run that stays, and the files in the folder.
TWO = """
import os, shutil, sys
import torch

sys.path.insert(0, sys.argv[1])
from base import run_folder as runs
from base.errors import RunError
folder = sys.argv[2]

def write(step):
    runs.write_run(folder, {"x": torch.full((40_000,), float(step)), "y": torch.tensor(step)}, {"step": step})

def read():
    arrays, record = runs.read_run(folder)
    assert (arrays["x"] == record["step"]).all() and arrays["y"] == record["step"]
    return record["step"]

def watch():
    for _ in range(20):
        try:
            read()
        except RunError as error:
            assert "does not exist" in str(error) or "has no run" in str(error), error

def start(work, *args):
    pid = os.fork()
    if pid == 0:
        work(*args)
        os._exit(0)
    return pid

torch.set_num_threads(1)
for _ in range(40):
    shutil.rmtree(folder, ignore_errors=True)
    started = [start(write, 1), start(write, 2), start(watch)]
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    print(*ended, read(), *sorted(os.listdir(folder)), flush=True)
"""


class Writer:
    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", WRITER, str(Path(runs.__file__).parents[1]), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def start(self, line: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        return self.answer()

    def answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "run")
    yield writer
    with writer.process:
        writer.process.kill()


def whole_run(folder: Path) -> int:
    """The step of the run that the folder holds, once its arrays and its record agree on it."""
    arrays, record = read_run(folder)
    step = int(record["step"])
    assert arrays["x"].shape == (40_000,)
    assert bool((arrays["x"] == step).all())
    assert arrays["y"].item() == step
    assert record["pad"] == [step] * 500
    return step


@needs_fork
def test_a_writer_killed_at_any_moment_leaves_a_whole_run(tmp_path: Path, writer: Writer) -> None:
    folder, moments = tmp_path / "run", random.Random(0)
    steps = []
    for _ in range(15):
        shutil.rmtree(folder, ignore_errors=True)
        pid = writer.start("loop")
        deadline = time.monotonic() + 30
        while not (folder / RUN_FILE).exists():
            assert time.monotonic() < deadline, "the writer wrote nothing"
        time.sleep(moments.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert writer.answer() == -signal.SIGKILL
        steps.append(whole_run(folder))
    assert len(set(steps)) > 3  # the kills fell into different writes


@needs_fork
def test_a_writer_that_dies_before_or_after_each_step_leaves_the_old_run_or_the_new(
    tmp_path: Path, writer: Writer
) -> None:
    folder, seen = tmp_path / "run", []
    for k in range(1, 60):
        write_run(folder, {"x": torch.zeros(40_000), "y": torch.tensor(0)}, {"step": 0, "pad": [0] * 500})
        assert len(list(folder.iterdir())) == 1  # nothing stays of the one that died before
        writer.start(str(k))
        died = writer.answer() == 9
        seen.append(whole_run(folder))
        if not died:
            break
    assert not died
    assert len(seen) > 8
    assert seen == sorted(seen)  # the old run up to one moment, the new one from then on
    assert set(seen) == {0, 1}


@needs_fork
def test_of_two_writers_one_wins_whole_and_readers_never_meet_a_half(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO, str(Path(runs.__file__).parents[1]), str(tmp_path / "run")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    rounds = ran.stdout.splitlines()
    assert len(rounds) == 40
    assert set(rounds) <= {f"0 0 0 {step} {RUN_FILE}" for step in (1, 2)}


@needs_fork
def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"x": torch.ones(1)}, {"step": 0})
    with runs._alone(folder) as locked:
        assert locked
        writer = Writer(folder)
        assert writer.process.stdin is not None
        writer.start("1000")  # of so many moments it lives to see all
        time.sleep(0.3)
        assert read_run(folder)[1] == {"step": 0}
    assert writer.answer() == 0
    assert read_run(folder)[1]["step"] == 1
    with writer.process:
        writer.process.kill()
