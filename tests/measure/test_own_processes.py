"""Which processes are a run's own: itself and whatever it has started, directly or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llenergymeasure.own_processes import own_pids


def _process(proc: Path, pid: int, parent: int, name: str = "python") -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0", encoding="utf-8")


@pytest.mark.parametrize(
    ("root", "own"),
    [
        pytest.param(10, {10, 11, 12, 13}, id="children and theirs"),
        pytest.param(11, {11, 12}, id="a branch"),
        pytest.param(13, {13}, id="a leaf"),
        pytest.param(99, {99}, id="one that is not listed"),
    ],
)
def test_a_tree_is_followed_to_its_leaves(root: int, own: set[int], tmp_path: Path) -> None:
    """Parents, siblings and strangers do not belong; names with blanks and brackets do not confuse it."""
    for pid, parent, name in ((1, 0, "init"), (10, 1, "llem"), (11, 10, "a) S 1 (b"), (12, 11, "w"), (13, 10, "x")):
        _process(tmp_path, pid, parent, name)
    (tmp_path / "14").mkdir()  # it ended meanwhile
    (tmp_path / "meminfo").write_text("0")
    assert own_pids(root, tmp_path) == own


def test_real_children_are_found() -> None:
    """A process that this one started is its own; the process that started this one is not."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = own_pids()
        assert {os.getpid(), child.pid} <= found
        assert os.getppid() not in found
    finally:
        child.kill()
        child.wait()
