"""Every error llem raises on purpose: one base, and a class per thing a caller does differently.

`exit_code` is what `llem run` ends with, `run_exit_code` what `llem experiment` ends with: the operator sorts
failures into retry budgets by the latter (docs/reference/exit-codes.md), so it stays away from 1, 2 and >= 125.
"""

from collections.abc import Sequence
from typing import ClassVar


class LLEMError(Exception):
    """Base of all errors of llem; the message says what is wrong, the value, and the valid values or the fix."""

    exit_code: ClassVar[int] = 1
    run_exit_code: ClassVar[int] = 16


class ConfigError(LLEMError):
    """The user's file, flags or environment cannot be used as written."""

    exit_code = 2
    run_exit_code = 10


class PreFlightError(LLEMError):
    """What the configuration needs is not here; carries every failed check, each with its fix."""

    run_exit_code = 11

    def __init__(self, problems: Sequence["LLEMError"] | str) -> None:
        self.problems: tuple[LLEMError, ...] = () if isinstance(problems, str) else tuple(problems)
        text = problems if isinstance(problems, str) else "; ".join(str(p) for p in problems)
        super().__init__(text)

    @property
    def experiment_exit_code(self) -> int:
        """Exit code for `llem experiment`: that of the first problem, since it decides the retry budget."""
        return self.problems[0].run_exit_code if self.problems else self.run_exit_code


class HardwareError(PreFlightError):
    """The wrong GPU, too few of them, or one that is shared."""

    run_exit_code = 11


class ModelNotFoundError(PreFlightError):
    """A model or dataset does not exist or may not be read with this token."""

    run_exit_code = 13


class UnreachableError(PreFlightError):
    """The hub or store does not answer now; trying again later may help."""

    run_exit_code = 20


class BackendError(LLEMError):
    """An inference engine refused or failed."""

    run_exit_code = 16


class BackendMissingError(BackendError):
    """The engine is not installed, or does not know an option that was set."""

    run_exit_code = 12


class OutOfMemoryError(BackendError):
    """The model, cache or batch does not fit into the GPU's memory."""

    run_exit_code = 14


class ExperimentError(LLEMError):
    """One run failed after it had started."""

    run_exit_code = 16


class MeasurementError(ExperimentError):
    """A sensor failed inside a measurement: there is no number rather than a smaller one."""

    run_exit_code = 15


class ResultStoreError(ExperimentError):
    """The result could not be written: the run counts as failed, whatever was measured."""

    run_exit_code = 17


class PhaseTimeoutError(ExperimentError):
    """A phase took longer than its limit; `phase` names it, None before the first one."""

    run_exit_code = 18

    def __init__(self, message: str, *, phase: str | None = None) -> None:
        super().__init__(message)
        self.phase = phase


class TerminatedError(ExperimentError):
    """The process was told to stop (SIGTERM)."""

    run_exit_code = 19


class ClusterError(LLEMError):
    """The cluster, or kubectl on the way to it, refused what was asked."""


class ClusterUnreachableError(ClusterError):
    """The API server does not answer now: who watches goes on, everybody else ends."""


class StudyError(LLEMError):
    """A study cannot start or go on: manifest, order or lock."""


def run_exit_code(error: BaseException) -> int:
    """Exit code of `llem experiment` for an error that ended the run (16, engine crashed, if it is foreign)."""
    if isinstance(error, PreFlightError):
        return error.experiment_exit_code
    return error.run_exit_code if isinstance(error, LLEMError) else BackendError.run_exit_code
