"""Holds GPUs in a named idle: bare, or with a CUDA context that a helper process opens through libcuda.

The helper loads nothing else, so the `context` idle is the same for every engine and is measured once for all of them.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llenergymeasure.core.contracts import Device
from llenergymeasure.core.errors import MeasurementError

HELPER_TIMEOUT_S = 30.0
CREATION_S = 2.0  # making a context takes power of its own for about a second


@contextmanager
def idle(kind: str, devices: Sequence[Device], *, pretended: bool) -> Iterator[None]:
    """Hold the GPUs in the named idle: `context` by a helper process, the others by doing nothing.

    Raises:
        MeasurementError: No context can be made here.

    """
    if kind != "context" or pretended:
        yield
        return
    command = [sys.executable, "-m", "llenergymeasure.idle_context", *(d.uuid for d in devices)]
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert helper.stdin is not None
    assert helper.stdout is not None
    assert helper.stderr is not None
    try:
        if helper.stdout.readline().strip() != b"ready":
            said = helper.stderr.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise MeasurementError(f"no CUDA context for the baseline: {said[-1]}; use baseline.kind: bare")
        time.sleep(CREATION_S)
        yield
    finally:
        helper.stdin.close()
        helper.wait(timeout=HELPER_TIMEOUT_S)


def _hold_contexts(uuids: Sequence[str]) -> None:
    """The helper: open every device's primary context, say so, and wait until standard input closes."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise SystemExit(f"{name} failed with CUDA error {code}")

    call("cuInit", 0)
    for index in range(len(uuids)):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _hold_contexts(sys.argv[1:])
