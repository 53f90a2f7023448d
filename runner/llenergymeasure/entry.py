"""What the command `llem` starts, before anything heavy is imported.

The runner of a pod is process 1, for which the kernel has no default action: until it handles SIGTERM itself, a pod
that is deleted while the runner imports would not notice, and would measure to the end.
"""

import os
import signal
import sys
from types import FrameType

TOLD_TO_STOP = 143
"""128 + SIGTERM: what a process that does not handle the signal ends with where it is not process 1."""


def main() -> None:
    """Entry point of `llem` and `kubectl-llem`; `llem experiment` ends on SIGTERM from here on, with exit code 143."""
    if sys.argv[1:2] == ["experiment"]:
        signal.signal(signal.SIGTERM, _end)  # until `experiment.run_as_child` says more than a code
    from llenergymeasure import cli

    cli.main()


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: an exception would go up through half an import, which may catch it."""
    del number, frame
    os._exit(TOLD_TO_STOP)
