"""Runs `llem` as users do: the installed command, in a process of its own; and the smallest configuration it takes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLEM = Path(sys.executable).with_name("llem")
FAST: dict[str, Any] = {
    "model": "m",
    "backend": "synthetic",
    "dataset": "builtin",
    "n": 2,
    "max_output_tokens": 4,
    "warmup": {"n_warmup": 1},
    "baseline": {"enabled": False},
    "energy": {"backend": "simulated"},
    "measurement": {"min_duration_seconds": 0},
}
"""An experiment of the pretended engine that takes milliseconds once its process is up."""

NEVER_ENDING = {"synthetic": {"batch_overhead_ms": 60_000}}
"""Laid over FAST: one batch takes a minute, so that there is time to kill it."""


@dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that announce an error."""
        return [line for line in self.err.splitlines() if line.lower().startswith("error:")]


@dataclass(frozen=True)
class Planned:
    """What `llem run … --dry-run --json` said."""

    plan: dict[str, Any]
    notes: str

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The resolved configuration of each experiment."""
        return [e["config"] for e in self.plan["experiments"]]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's environment as a user has it: compiled modules are kept, or each process compiles all of pandas."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(more or {})


def llem(*words: object, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120) -> Ended:
    """Run `llem WORDS…` in `cwd` to its end; `env` comes on top of the test's own environment."""
    began_s = time.monotonic()
    done = subprocess.run(
        [str(LLEM), *map(str, words)],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - began_s)


def start(*words: object, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `llem WORDS…` and come back at once.

    It ignores neither SIGINT, as a background job of a shell does, nor SIGHUP, as tests under nohup do.
    """
    return subprocess.Popen(
        [str(LLEM), *map(str, words)],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_signals,  # noqa: PLW1509  (one thread here)
    )


def _hear_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def over(base: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `layers` on top, one level deep."""
    merged = dict(base)
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            merged[key] = {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def write(folder: Path, *layers: Mapping[str, Any], name: str = "config.yaml") -> Path:
    """Write FAST with `layers` on top as a configuration file (JSON is YAML, and quotes every key)."""
    path = folder / name
    path.write_text(json.dumps(over(FAST, *layers)), encoding="utf-8")
    return path


def wait_until(condition: Callable[[], Any], *, limit_s: float = 30) -> Any:
    """Give the first true value of `condition`, asked every 20 ms; fails the test after `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"did not become true within {limit_s:g} s")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_with(variable: str, value: str) -> list[int]:
    """Pids of living processes whose environment holds `variable=value`: a study's children carry LLEM_STUDY."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and alive(int(folder.name)):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"{variable}={value}".encode() in environment:
                found.append(int(folder.name))
    return found


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}
