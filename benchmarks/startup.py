"""Times `llem --version` and `import llenergymeasure` as whole processes. Target for --version: at most 0.4 s.

python benchmarks/startup.py
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

LLEM = str(Path(sys.executable).parent / "llem")


def seconds(command: Sequence[str], runs: int = 11) -> list[float]:
    """Wall time of each run, after one that does not count."""
    found = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - begun)
    return found[1:]


def main() -> None:
    """Print minimum and median of each command."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import llenergymeasure": [sys.executable, "-c", "import llenergymeasure"],
        "llem --version": [LLEM, "--version"],
    }
    for name, command in commands.items():
        found = seconds(command)
        print(f"{name:24} min {min(found):.3f} s  median {median(found):.3f} s")


if __name__ == "__main__":
    main()
