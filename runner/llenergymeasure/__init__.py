"""llem measures what a token costs in joules; importing this package loads no engine and no GPU library."""

from typing import TYPE_CHECKING, Any

__version__ = "2.0.0"

__all__ = [
    "ExperimentConfig",
    "ExperimentResult",
    "StudyConfig",
    "StudyResult",
    "__version__",
    "run_experiment",
    "run_study",
]

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig, StudyConfig
    from llenergymeasure.core.result import ExperimentResult, StudyResult
    from llenergymeasure.study import run_experiment, run_study

_HOME = {
    "ExperimentConfig": "llenergymeasure.core.config",
    "StudyConfig": "llenergymeasure.core.config",
    "ExperimentResult": "llenergymeasure.core.result",
    "StudyResult": "llenergymeasure.core.result",
    "run_experiment": "llenergymeasure.study",
    "run_study": "llenergymeasure.study",
}


def __getattr__(name: str) -> Any:
    """Give a public name on first use, so that `import llenergymeasure` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'llenergymeasure' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
