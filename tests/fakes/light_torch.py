"""Keeps tests that load engines quick; both folders that do so use it."""

import gc
import sys


def lighten_torch() -> None:
    """One thread, since the models are tiny, and a collector that skips loaded libraries."""
    gc.collect()
    gc.freeze()  # an engine's close() collects garbage; going through all of transformers takes half a second each time
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
