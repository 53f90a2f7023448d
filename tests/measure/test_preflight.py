"""Before anything is loaded: every problem at once, each with its fix and with the exit code it deserves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine
from llenergymeasure import preflight
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ConfigError, HardwareError, LLEMError, PreFlightError, run_exit_code
from llenergymeasure.measure import Measured
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.user_config import UserConfig

LLAMA_8B = (
    '{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, '
    '"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": false}'
)


def test_all_failures_come_at_once(run: Callable[..., Measured], machine: Machine, tmp_path: Path) -> None:
    """Missing model, dataset, libraries and energy source are one error that lists them all; nothing was started."""
    machine.play()
    events: list[dict[str, Any]] = []
    with pytest.raises(PreFlightError) as caught:
        run(
            backend="pytorch",
            model=str(tmp_path / "no-model"),
            dataset=str(tmp_path / "no-data.jsonl"),
            energy={"backend": "nvml"},
            pytorch={"load_in_4bit": True, "num_processes": 2},
            measurement={"window": "saturated"},
            emit=events.append,
        )
    text = str(caught.value)
    for said in ("no-model", "no-data.jsonl", "energy.backend: nvml", "bitsandbytes", "num_processes: 2", "saturated"):
        assert said in text
    assert len(caught.value.problems) == 6
    assert [e["phase"] for e in events] == ["preflight"]


@pytest.mark.parametrize(
    ("fields", "kind", "code", "exit_code"),
    [
        pytest.param({"dataset": "biultin"}, ConfigError, 10, 2, id="dataset: configuration"),
        pytest.param({"dataset": "missing.jsonl"}, ConfigError, 10, 2, id="file: configuration"),
        pytest.param({"energy": {"backend": "nvml"}}, PreFlightError, 11, 1, id="sensor: hardware"),
        pytest.param({"backend": "vllm"}, PreFlightError, 12, 1, id="engine: backend"),
        pytest.param({"traffic": {"target_qps": 1}}, PreFlightError, 12, 1, id="traffic: backend"),
        pytest.param({"backend": "pytorch", "model": "/nowhere"}, PreFlightError, 13, 1, id="model: not found"),
    ],
)
def test_each_problem_has_its_class_and_exit_codes(
    fields: dict[str, Any],
    kind: type[LLEMError],
    code: int,
    exit_code: int,
    run: Callable[..., Measured],
    machine: Machine,
) -> None:
    """`llem run` and `llem experiment` end with the codes of their tables."""
    machine.play()
    with pytest.raises(LLEMError) as caught:
        run(**{"dataset": "builtin", "energy": {"backend": "none"}} | fields)
    assert type(caught.value) is kind
    assert (run_exit_code(caught.value), caught.value.exit_code) == (code, exit_code)


def test_several_configuration_problems_are_one_configuration_error() -> None:
    """If everything wrong lies in the file, it is a ConfigError that lists all of it."""
    with pytest.raises(ConfigError) as caught:
        preflight.refuse([ConfigError("first thing"), ConfigError("second thing")])
    assert "first thing" in str(caught.value)
    assert "second thing" in str(caught.value)
    assert preflight.refuse([]) is None


@pytest.mark.parametrize(
    ("capability", "precision", "refused"),
    [
        pytest.param((7, 5), "bf16", True, id="Turing, bf16"),
        pytest.param((7, 5), "fp16", False, id="Turing, fp16"),
        pytest.param((8, 0), "bf16", False, id="Ampere, bf16"),
        pytest.param((8, 0), "fp8", True, id="Ampere, fp8"),
        pytest.param((8, 9), "fp8", False, id="Ada, fp8"),
        pytest.param((9, 0), "fp8", False, id="Hopper, fp8"),
    ],
)
def test_a_gpu_that_is_too_old_is_refused(
    capability: tuple[int, int], precision: str, refused: bool, machine: Machine
) -> None:
    """bf16 needs 8.0, fp8 needs 8.9; the error names the card, both numbers and -p fp16."""
    machine.play(Gpu(uuid="GPU-new"), Gpu(uuid="GPU-x", name="Card X", capability=capability))
    backend = "vllm" if precision == "fp8" else "pytorch"
    problems = preflight.hardware_problems(
        ExperimentConfig(model="m", backend=backend, precision=precision, dataset="builtin"), {}
    )
    assert bool(problems) is refused
    if refused:
        (problem,) = problems
        assert isinstance(problem, HardwareError)
        assert f"Card X has {capability[0]}.{capability[1]}" in str(problem)
        assert "-p fp16" in str(problem)


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        pytest.param({}, False, id="unset"),
        pytest.param({"LLEM_GPU_COUNT": "1"}, False, id="one of one"),
        pytest.param({"LLEM_GPU_COUNT": "2"}, True, id="two wanted"),
        pytest.param({"LLEM_GPU_COUNT": "2", "LLEM_ALLOW_CPU": "1"}, False, id="CPU allowed"),
    ],
)
def test_the_promised_gpus_must_be_there(variables: dict[str, str], refused: bool, machine: Machine) -> None:
    """LLEM_GPU_COUNT is what the starter promised; fewer visible GPUs are exit code 11."""
    machine.play(Gpu())
    problems = preflight.hardware_problems(ExperimentConfig(model="m", dataset="builtin"), variables)
    assert bool(problems) is refused
    assert all(run_exit_code(p) == 11 and "2 GPUs" in str(p) for p in problems)


def test_a_pretended_engine_needs_no_modern_gpu(config: Callable[..., ExperimentConfig], machine: Machine) -> None:
    """Capabilities are only asked of engines that compute."""
    machine.play(Gpu(capability=(6, 0)))
    assert preflight.hardware_problems(config(precision="bf16"), {}) == []


@pytest.mark.parametrize(("memory_mb", "warned"), [(81559, False), (16384, True)], ids=["80 GB", "16 GB"])
def test_a_model_that_hardly_fits_is_announced(memory_mb: int, warned: bool, machine: Machine, tmp_path: Path) -> None:
    """Above 90 % of the smallest GPU the estimate is a warning with both numbers."""
    (tmp_path / "config.json").write_text(LLAMA_8B, encoding="utf-8")
    machine.play(Gpu(), Gpu(uuid="GPU-small", memory_mb=memory_mb))
    found = preflight.memory_warning(ExperimentConfig(model=str(tmp_path), dataset="builtin"), UserConfig())
    assert (found is not None) is warned
    if found:
        assert found.startswith("likely_out_of_memory:")
        assert "16,384 MB" in found


def test_without_a_config_there_is_no_estimate(machine: Machine, tmp_path: Path) -> None:
    """Unknown sizes are no warning and no error."""
    machine.play(Gpu(memory_mb=1))
    config = ExperimentConfig(model=str(tmp_path / "none"), dataset="builtin")
    assert preflight.estimate_memory(config, UserConfig()) is None
    assert preflight.memory_warning(config, UserConfig()) is None


def test_an_unknown_source_in_the_users_file_is_a_config_error() -> None:
    """The error names the value and the valid ones."""
    user = UserConfig.model_validate({"measurement": {"energy_backend": "nvlm"}})
    with pytest.raises(ConfigError, match=r"'nvlm' is unknown; valid: auto, none, .*nvml"):
        preflight.choose_source(ExperimentConfig(model="m", dataset="builtin"), user)


def test_auto_takes_the_best_source_that_sees_a_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeus where it is installed, else NVML's own counter, else an estimate."""
    import sys

    machine.play(Gpu())
    config = ExperimentConfig(model="m", dataset="builtin")

    def chosen() -> str | None:
        source = preflight.choose_source(config, UserConfig()).source
        return source.NAME if source else None

    assert chosen() == "zeus"
    monkeypatch.setitem(sys.modules, "zeus", None)
    assert chosen() == "nvml"
    machine.play(Gpu(missing=["nvmlDeviceGetTotalEnergyConsumption"]))
    assert chosen() == "codecarbon"
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    assert chosen() is None


@pytest.mark.parametrize(
    ("pids", "own", "said"),
    [
        pytest.param([4711, 42], set(), "process 42, 4711 computes on", id="strangers"),
        pytest.param([4711, 42], {42}, "process 4711 computes on", id="one is ours"),
        pytest.param([42], {42}, None, id="ours alone"),
        pytest.param([], set(), None, id="nobody"),
    ],
)
def test_a_gpu_in_use_is_told_before_the_run(
    pids: list[int], own: set[int], said: str | None, machine: Machine
) -> None:
    """Processes that compute on this run's GPU are named before minutes are spent; the run itself may go on."""
    machine.play(Gpu(uuid="GPU-1", pids=pids))
    found = preflight.occupied(visible_devices(), frozenset(own))
    assert len(found) == (said is not None)
    if said is not None:
        assert f"{said} GPU-1" in found[0]
        assert found[0].startswith("gpu_occupied:")


@pytest.mark.parametrize("deep", [True, False], ids=["to be made", "existing"])
def test_a_writable_folder_is_left_as_it_was(deep: bool, tmp_path: Path) -> None:
    """The probe leaves nothing behind."""
    preflight.check_writable(tmp_path / "a" / "b" if deep else tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """The error names the folder and -o."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(PreFlightError, match=r"not writable .*choose another with -o"):
        preflight.check_writable(tmp_path / "file" / "results")
