"""Plants a known difference: with LLEM_PLANT_S set, every batch of a PyTorch run with random_seed 44 waits that long.

Python imports this file by itself when its folder is on PYTHONPATH. The wait lies inside the batch, so it costs the
loaded idle power times the wait and nothing else; no setting of the GPU is touched.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from typing import Any

PLANTED_SEED = 44
TARGET = "llenergymeasure.backends.pytorch"


class _Planter(importlib.abc.MetaPathFinder):
    """Wraps the engine's `generate` when its module is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Give the module's own spec with a loader that plants."""
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def plant(module: Any) -> None:
            execute(module)
            _wrap(module.Engine, float(os.environ["LLEM_PLANT_S"]))

        spec.loader.exec_module = plant  # type: ignore[method-assign]
        return spec


def _wrap(engine: Any, wait_s: float) -> None:
    load, generate = engine.load, engine.generate

    def loading(self: Any, config: Any, weights: Any) -> Any:
        self.planted = config.random_seed == PLANTED_SEED
        return load(self, config, weights)

    def generating(self: Any, batch: Any) -> Any:
        done = generate(self, batch)
        if self.planted:
            time.sleep(wait_s)
        return done

    engine.load, engine.generate = loading, generating


if os.environ.get("LLEM_PLANT_S"):
    sys.meta_path.insert(0, _Planter())
