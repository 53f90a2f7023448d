"""Torch and its devices, whatever model runs on them: seeds, memory, a synchronised clock, its errors as ours.

`device` is torch's name of a kind: `cuda` or `cpu`. torch is imported inside functions.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llenergymeasure.core.errors import BackendError, BackendMissingError, LLEMError, OutOfMemoryError

MB = 2**20


def seed(value: int) -> None:
    """Seed python, numpy, torch CPU and CUDA, from which sampling draws."""
    import numpy as np
    import torch

    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)


def now_s(device: str) -> float:
    """CLOCK_MONOTONIC once the device has nothing left to do, s."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.monotonic()


def memory_now_mb(device: str) -> float | None:
    """What torch's allocator holds over all GPUs, MiB; None on a CPU."""
    import torch

    if device != "cuda":
        return None
    return sum(int(torch.cuda.memory_allocated(i)) for i in range(torch.cuda.device_count())) / MB


def memory_peak_mb(device: str) -> float | None:
    """Peak of torch's allocator over all GPUs, MiB; None on a CPU."""
    import torch

    if device != "cuda":
        return None
    return sum(int(torch.cuda.max_memory_allocated(i)) for i in range(torch.cuda.device_count())) / MB


def reset_memory_peak(device: str) -> None:
    """Start a new peak."""
    import torch

    if device == "cuda":
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


@contextmanager
def translated(name: str, doing: str) -> Iterator[None]:
    """Turn what torch and transformers raise into errors of llem, at this edge only; `name` is the backend's."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as err:
        raise OutOfMemoryError(f"GPU out of memory while {doing}; lower batch_size or lengths: {err}") from err
    except MemoryError as err:
        raise OutOfMemoryError(f"host out of memory while {doing}; lower batch_size or lengths") from err
    except ImportError as err:
        raise BackendMissingError(f"{name}: a library is missing while {doing}: {err}") from err
    except LLEMError:
        raise  # ours already: a signal's TerminatedError may arrive in the middle of a generate
    except Exception as err:  # safetensors, tokenizers and torch raise classes of their own, some a bare Exception
        if isinstance(err, TypeError) and "unexpected keyword argument" in str(err):
            raise BackendMissingError(f"{name} does not know an option, while {doing}: {err}") from err
        raise BackendError(f"{name} failed while {doing}: {type(err).__name__}: {err}") from err
