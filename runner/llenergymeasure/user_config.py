"""The user's own defaults: one YAML file at the platform's place, and environment variables that beat it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, Field, ValidationError, create_model

from llenergymeasure.core import registry
from llenergymeasure.core.config import check_runner
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.keys import credential_problems, did_you_mean, key_tree, refuse
from llenergymeasure.core.sections import Float, Part
from llenergymeasure.yaml_reading import read_mapping

APP = "llenergymeasure"
Runner = Annotated[str, AfterValidator(check_runner)]


class OutputSection(Part):
    """Where things go."""

    results_dir: str = Field("./results", description="Folder of results.")
    model_cache_dir: str | None = Field(None, description="Folder of converted and downloaded models.")


class MeasurementSection(Part):
    """Facts about this machine and its electricity."""

    energy_backend: str = Field("auto", description="Source of joules when the configuration says auto.")
    carbon_intensity_gco2_kwh: Float | None = Field(None, ge=0, description="Grams of CO2 per kWh here.")
    datacenter_pue: Float = Field(1.0, ge=1, description="Power usage effectiveness, no unit.")


class ExecutionSection(Part):
    """Pauses of studies that name none."""

    config_gap_seconds: Float = Field(60.0, ge=0, description="Pause between runs, s.")
    cycle_gap_seconds: Float = Field(300.0, ge=0, description="Pause between cycles, s.")


class UiSection(Part):
    """How llem talks."""

    prompt: bool = Field(True, description="Ask questions on a terminal.")
    verbosity: Literal["quiet", "normal", "verbose"] = Field("normal", description="How much is printed.")


class NotificationsSection(Part):
    """Whom to tell."""

    webhook_url: str | None = Field(None, description="Address that gets a JSON POST.")
    on_complete: bool = Field(True, description="Tell of completed studies.")
    on_failure: bool = Field(True, description="Tell of failures.")


RunnersSection: Any = create_model(
    "RunnersSection",
    __base__=Part,
    __doc__="Where each backend runs.",
    **{
        n: (Runner, Field("auto", description=f"Runner of backend {n}."))
        for n in registry.backend_names()
        if registry.is_real(n)
    },  # type: ignore[call-overload]  # fields are made at run time
)


class UserConfig(Part):
    """The user's defaults; a study file and the command line win over them."""

    output: OutputSection = Field(OutputSection(), description="Where things go.")
    runners: RunnersSection = Field(RunnersSection(), description="Where each backend runs.")
    measurement: MeasurementSection = Field(MeasurementSection(), description="This machine's facts.")
    execution: ExecutionSection = Field(ExecutionSection(), description="Pauses of studies.")
    ui: UiSection = Field(UiSection(), description="How llem talks.")
    notifications: NotificationsSection = Field(NotificationsSection(), description="Whom to tell.")


def user_config_path() -> Path:
    """Path of the user's file, `~/.config/llenergymeasure/config.yaml` on Linux."""
    return Path(platformdirs.user_config_dir(APP)) / "config.yaml"


def cache_dir(config: UserConfig | None = None) -> Path:
    """Folder for converted models and datasets."""
    chosen = config.output.model_cache_dir if config else None
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir(APP))


def load_user_config(environ: Mapping[str, str] | None = None) -> UserConfig:
    """Read the user's file and environment; a missing file means defaults, a wrong one is a ConfigError."""
    environ = os.environ if environ is None else environ
    path = user_config_path()
    data = {} if _says_nothing(path) else read_mapping(path)
    problems = [*_unknown(data), *credential_problems(data)]
    refuse(problems, source=str(path))
    source, merged = str(path), _with_environment(data, environ)
    try:
        return UserConfig.model_validate(merged)
    except ValidationError as err:
        raise ConfigError(f"{source} and environment: " + "; ".join(_lines(err))) from err


def _says_nothing(path: Path) -> bool:
    """True for a file that is not there, or holds nothing but comments."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # the reader names what is wrong with it
    return all(not line.strip() or line.lstrip().startswith(b"#") for line in lines)


def _lines(err: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in err.errors()]


def _unknown(data: Mapping[str, Any]) -> list[str]:
    tree = key_tree(UserConfig)
    found = []
    for section, values in data.items():
        if section not in tree:
            found.append(f"{section}: unknown section{did_you_mean(str(section), tree)}")
        elif values is not None and not isinstance(values, Mapping):
            found.append(f"{section}: must be a mapping")
        else:
            found += [
                f"{section}.{k}: unknown key{did_you_mean(str(k), tree[section])}"
                for k in values or {}
                if k not in tree[section]
            ]
    return found


def _with_environment(data: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    merged: dict[str, dict[str, Any]] = {k: dict(v or {}) for k, v in data.items()}
    for name in RunnersSection.model_fields:
        if value := environ.get(f"LLEM_RUNNER_{name.upper()}"):
            merged.setdefault("runners", {})[name] = value
    numbers = {"LLEM_CARBON_INTENSITY": "carbon_intensity_gco2_kwh", "LLEM_DATACENTER_PUE": "datacenter_pue"}
    for variable, key in numbers.items():
        if value := environ.get(variable):
            merged.setdefault("measurement", {})[key] = _number(variable, value)
    if environ.get("LLEM_NO_PROMPT"):
        merged.setdefault("ui", {})["prompt"] = False
    return merged


def _number(variable: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{variable}: must be a number, not {value!r}") from None
