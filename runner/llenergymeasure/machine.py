"""Says what this machine has for llem, what is missing and how to get it; never raises."""

import platform

from llenergymeasure import __version__
from llenergymeasure.core import registry
from llenergymeasure.core.config import BUILTIN_PREFIX
from llenergymeasure.core.errors import LLEMError
from llenergymeasure.core.plan import flatten
from llenergymeasure.models import BUILTIN, check
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.report import provenance_lines
from llenergymeasure.user_config import UserConfig, cache_dir, load_user_config, user_config_path


def description() -> str:
    """The text of `llem config`."""
    return "\n".join(
        [
            f"llem {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            *_user_section(),
            "",
            "backends",
            *provenance_lines({n: _backend(n) for n in registry.backend_names()}),
            "",
            "energy sources",
            *provenance_lines({n: _energy(n) for n in registry.energy_names()}),
            "",
            "GPUs",
            *(
                provenance_lines({str(d.index): f"{d.name} {d.uuid}" for d in visible_devices()})
                or ["  none visible: runs use the CPU, energy is not measured"]
            ),
            "",
            "models",
            *provenance_lines({f"{BUILTIN_PREFIX}{BUILTIN}": _builtin()}),
        ]
    )


def _user_section() -> list[str]:
    path = user_config_path()
    try:
        user, state = load_user_config(), "" if path.exists() else " (not there: defaults)"
    except LLEMError as err:
        return [
            f"user config: {path}",
            f"  BROKEN: {err}",
            "  every other command refuses it; mend what is named above",
        ]
    values = flatten(user.model_dump())
    standard = flatten(UserConfig().model_dump())
    changed = {k: v for k, v in values.items() if standard.get(k) != v}
    return [f"user config: {path}{state}", *provenance_lines(changed), f"cache: {cache_dir(user)}"]


def _backend(name: str) -> str:
    if not registry.can_run(name):
        return "can be planned; running it is not part of this version"
    if not registry.installed(name):
        return f"not installed; {registry.install_hint(name)}"
    if not registry.is_real(name):
        return "ready (pretended engine, for tests)"
    versions = registry.library_versions(name)
    return f"ready ({', '.join(f'{k} {v}' for k, v in versions.items())})" if versions else "ready"


def _energy(name: str) -> str:
    found = registry.energy_source(name).availability()
    if not found.ok:
        return f"not available: {found.reason}; {found.fix}"
    if registry.energy_source(name).KIND == "simulated":
        return "ready (pretended, for tests)"
    return "ready" if visible_devices() else "host energy only: no GPU is visible, so no joules of a run"


def _builtin() -> str:
    problems = check(f"{BUILTIN_PREFIX}{BUILTIN}", None)
    return str(problems[0]) if problems else "installed"
