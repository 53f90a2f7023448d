"""The operator's options, read once from the environment (the chart sets it)."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.resources import MAX_RUNS

PREFIX = "LLEM_OPERATOR_"


class Settings(BaseModel):
    """Everything that may differ between two installations; times in s."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespaces: tuple[str, ...] = Field((), description="Watched namespaces; empty: the whole cluster.")
    namespace: str = Field("default", description="The operator's own namespace: its Lease lives there.")
    lease: str = Field("llem-operator", description="Name of the Lease that makes one operator the leader.")
    identity: str = Field("llem-operator", description="Holder name in the Lease: the pod's name.")
    images: dict[str, str] = Field(default_factory=dict, description="Runner image per backend.")
    image_pull_policy: str = Field("IfNotPresent", description="Pull policy of runner images.")
    image_pull_secrets: tuple[str, ...] = Field((), description="Names of pull secrets of runner pods.")
    runner_service_account: str | None = Field(None, description="ServiceAccount of runner pods; it gets no token.")
    results: dict[str, Any] = Field(default_factory=dict, description="Destination where a study names none.")
    allowed_images: tuple[str, ...] = Field((), description="Prefixes of images that studies may name; empty: any.")
    allowed_service_accounts: tuple[str, ...] = Field((), description="ServiceAccounts studies may name; empty: any.")
    allow_host_path: bool = Field(False, description="Whether a podTemplate may mount hostPath volumes.")
    resources: dict[str, dict[str, str]] = Field(
        default_factory=lambda: {k: {"cpu": "4", "memory": "16Gi"} for k in ("requests", "limits")},
        description="CPU and memory of a runner container.",
    )
    config_gap_seconds: float = Field(60.0, ge=0, description="Pause between runs on one node where none is set, s.")
    cycle_gap_seconds: float = Field(300.0, ge=0, description="Pause between cycles on one node where none is set, s.")
    max_runs: int = Field(5000, ge=1, le=MAX_RUNS, description="Most runs of one study.")
    workers: int = Field(4, ge=1, le=64, description="Reconciles at once.")
    qps: float = Field(50.0, gt=0, description="Sustained requests/s to the API server.")
    burst: int = Field(100, ge=1, description="Requests at once before the limit acts.")
    resync_seconds: float = Field(60.0, gt=0, description="Time between two full comparisons with the API server, s.")
    health_port: int = Field(8080, description="Port of /healthz and /readyz.")
    metrics_port: int = Field(8081, description="Port of /metrics.")
    log_level: str = Field("INFO", description="Level of the log.")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read LLEM_OPERATOR_*; lists and mappings are JSON, namespaces a comma list.

        Raises:
            ConfigError: A variable that is unknown or cannot be read; names it.

        """
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            name = variable.removeprefix(PREFIX).lower()
            if variable.startswith(PREFIX) and text != "":
                values[name] = _value(variable, name, text)
        try:
            return cls.model_validate(values)
        except ValidationError as err:
            lines = [
                f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']} (got {e['input']!r})" for e in err.errors()
            ]
            raise ConfigError("\n  - ".join(["the operator's settings are not valid", *lines])) from None


def _value(variable: str, name: str, text: str) -> Any:
    if name == "namespaces":
        return tuple(n.strip() for n in text.split(",") if n.strip())
    if not text.startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as err:
        raise ConfigError(f"{variable}: is not JSON: {err}") from None
