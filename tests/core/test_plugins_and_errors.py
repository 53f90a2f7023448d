"""How the core finds plug-ins without knowing them, and what its errors tell callers."""

import subprocess
import sys
from typing import Any

import pytest

from llenergymeasure.core import errors, registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import LLEMError, PreFlightError, run_exit_code


def test_automatic_energy_source_is_tried_in_the_documented_order() -> None:
    """Zeus, then NVML, then CodeCarbon; nothing simulated is ever chosen by itself."""
    assert registry.energy_auto_order() == ("zeus", "nvml", "codecarbon")


BACKENDS: list[tuple[str, bool, bool, str]] = [
    ("pytorch", True, True, "batch_size"),
    ("vllm", True, True, "max_num_seqs"),
    ("tensorrt", True, True, "max_batch_size"),
    ("synthetic", False, False, "batch_size"),
]


@pytest.mark.parametrize(("name", "real", "weights", "batch_key"), BACKENDS, ids=[b[0] for b in BACKENDS])
def test_backend_says_what_it_is(name: str, real: bool, weights: bool, batch_key: str) -> None:
    """Only the synthetic engine pretends; `--batch-size` sets each backend's own parameter."""
    assert registry.is_real(name) is real
    assert registry.needs_weights(name) is weights
    assert registry.batch_size_key(name) == batch_key
    assert batch_key in registry.backend_settings(name).model_fields
    assert registry.install_hint(name) or not real


@pytest.mark.parametrize("name", ["jax", "__init__", "../core/config"])
def test_unknown_plugin_is_an_error_that_lists_the_known_ones(name: str) -> None:
    """A name never becomes an import of something else."""
    with pytest.raises(LookupError, match="pytorch, synthetic, tensorrt, vllm"):
        registry.backend_settings(name)


def test_default_backend_is_pytorch_whatever_is_installed() -> None:
    """The synthetic engine and an installed vLLM are never chosen by default."""
    assert ExperimentConfig(model="m").backend == "pytorch"


HEAVY = ("torch", "transformers", "vllm", "tensorrt_llm", "pynvml", "zeus", "codecarbon", "pyarrow", "numpy", "yaml")


def test_core_loads_no_heavy_library() -> None:
    """Schema, expansion and plan need pydantic and nothing else, in any process that asks for them."""
    code = (
        "import sys; from llenergymeasure.core import introspection, plan, sweep, result, manifest;"
        "introspection.study_schema();"
        "plan.make_plan(sweep.expand({'model': 'm', 'backend': 'vllm', 'sweep': {'n': [1, 2]}}));"
        "print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    )
    run = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


CLASSES: list[Any] = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LLEMError)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_exit_codes_stay_away_from_those_with_a_meaning(error: type[LLEMError]) -> None:
    """`llem run` ends with 1 or 2; `llem experiment` never with 1, 2 or what a shell or signal would give."""
    assert error.exit_code in (1, 2)
    assert 10 <= error.run_exit_code < 125


def test_usage_errors_exit_with_2_and_all_others_with_1() -> None:
    """Only what the user wrote is a usage error."""
    assert {c for c in CLASSES if c.exit_code == 2} == {errors.ConfigError}


def test_preflight_error_carries_every_problem_and_the_code_of_the_first() -> None:
    """All failed checks are shown at once; the first decides how the failure is sorted."""
    found = PreFlightError([errors.ModelNotFoundError("no model"), errors.HardwareError("no GPU")])
    assert str(found) == "no model; no GPU"
    assert [str(p) for p in found.problems] == ["no model", "no GPU"]
    assert run_exit_code(found) == errors.ModelNotFoundError.run_exit_code
    assert run_exit_code(PreFlightError("text only")) == PreFlightError.run_exit_code


FOREIGN: list[tuple[str, BaseException, int]] = [
    ("foreign", RuntimeError("x"), 16),
    ("config", errors.ConfigError("x"), 10),
    ("memory", errors.OutOfMemoryError("x"), 14),
    ("sensor", errors.MeasurementError("x"), 15),
    ("store", errors.ResultStoreError("x"), 17),
    ("terminated", errors.TerminatedError("x"), 19),
]


@pytest.mark.parametrize(("error", "code"), [r[1:] for r in FOREIGN], ids=[r[0] for r in FOREIGN])
def test_run_ends_with_the_code_of_its_error(error: BaseException, code: int) -> None:
    """An error that llem did not raise counts as a crashed engine."""
    assert run_exit_code(error) == code
