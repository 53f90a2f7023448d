"""Fixtures of the command line's tests: plans without a process, finished runs to look at, a trap for heavy imports."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.process import Ended, Planned, environment, llem, write
from llenergymeasure import cli


@pytest.fixture
def planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Planned]:
    """Plan `llem run WORDS…` in this process (tens of flags would need tens of interpreters)."""
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "other.jsonl"):  # a dry run looks whether there are enough prompts
        (tmp_path / name).write_text('{"prompt": "x"}\n' * 200, encoding="utf-8")

    def plan(*words: object) -> Planned:
        monkeypatch.setattr(sys, "argv", ["llem", "run", *map(str, words), "--dry-run", "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return Planned(json.loads(said.out), said.err)

    return plan


@pytest.fixture(scope="session")
def _forking() -> Iterator[subprocess.Popen[str]]:
    """The process that forks; see forked.py."""
    script = Path(__file__).with_name("forked.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def quick_llem(
    _forking: subprocess.Popen[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Ended]:
    """Run `llem WORDS…` in `tmp_path` as a forked process, for commands that end before any work begins."""
    said = tmp_path_factory.mktemp("said")

    def run(*words: object, env: Mapping[str, str] | None = None) -> Ended:
        out, err = said / "out", said / "err"
        out.unlink(missing_ok=True)
        err.unlink(missing_ok=True)
        request = {
            "argv": [*map(str, words)],
            "cwd": str(tmp_path),
            "env": environment(env),
            "out": str(out),
            "err": str(err),
        }
        assert _forking.stdin is not None
        assert _forking.stdout is not None
        began_s = time.monotonic()
        _forking.stdin.write(json.dumps(request) + "\n")
        _forking.stdin.flush()
        code = int(_forking.stdout.readline())
        return Ended(code, out.read_text(), err.read_text(), time.monotonic() - began_s)

    return run


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and the folder it was started in."""

    ended: Ended
    cwd: Path

    @property
    def folder(self) -> Path:
        """The results folder that it made below `results`."""
        (folder,) = (self.cwd / "results").iterdir()
        return folder


def _home(folder: Path) -> dict[str, str]:
    """The variables of a home of its own, for fixtures that outlive one test."""
    return {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config"), "XDG_CACHE_HOME": str(folder / ".cache")}


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One finished experiment: `llem run FILE`."""
    cwd = tmp_path_factory.mktemp("single")
    return Finished(llem("run", write(cwd), cwd=cwd, env=_home(cwd / "home")), cwd)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished study in which one configuration crashes in each of two cycles, exported as CSV."""
    cwd = tmp_path_factory.mktemp("study")
    body = {
        "name": "mixed",
        "sweep": {"precision": ["fp16", "fp99"]},
        "experiments": [{"synthetic": {"fail_after_batches": 1}}],
        "execution": {"n_cycles": 2},
    }
    words = ("run", write(cwd, body), "--export-csv", "table.csv")
    return Finished(llem(*words, cwd=cwd, env=_home(cwd / "home")), cwd)


@pytest.fixture
def heavy_imports(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Lay traps named like the engines' libraries before the real ones; give what stepped into them so far."""
    traps = tmp_path_factory.mktemp("traps")
    caught = traps / "caught"
    for name in ("torch", "transformers", "vllm"):
        (traps / f"{name}.py").write_text(f"open({str(caught)!r}, 'a').write('{name} ')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(traps), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return lambda: caught.read_text().split() if caught.exists() else []
