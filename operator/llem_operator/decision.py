"""What a reconcile decides: one status to write, then actions, and when to look again. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llem_operator.objects import Attempt


@dataclass(frozen=True)
class CreateExperiment:
    """Create a run's experiment; one of this name and owner may already be there.

    `memory`: what the study remembers of it, if it was deleted by hand.
    """

    manifest: Mapping[str, Any]
    memory: "Restore | None" = None


@dataclass(frozen=True)
class WriteExperimentStatus:
    """Change an experiment's status, made of the object as read live; left alone if it has moved meanwhile."""

    namespace: str
    name: str
    change: "StatusChange"


@dataclass(frozen=True)
class Release:
    """Begin the next attempt of an experiment that is between attempts."""

    attempt: int  # the number that it must still have


@dataclass(frozen=True)
class Reopen:
    """Let a finished experiment go again in this epoch."""

    epoch: int


@dataclass(frozen=True)
class Cancel:
    """End an experiment that never started, with its reason."""

    reason: str
    message: str


@dataclass(frozen=True)
class Restore:
    """Give an experiment that was deleted by hand the status that the study remembers."""

    status: Mapping[str, Any]
    state: str  # what the study remembers: running, completed, failed, cancelled


StatusChange = Release | Reopen | Cancel | Restore


@dataclass(frozen=True)
class CreateJob:
    """Create an attempt's Job; one of this name and owner may already be there."""

    attempt: Attempt


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job by name and UID, its pods with it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class ExpireJob:
    """Let a finished Job be collected after so many seconds."""

    namespace: str
    name: str
    ttl_s: int


Action = CreateExperiment | WriteExperimentStatus | CreateJob | DeleteJob | ExpireJob


@dataclass(frozen=True)
class Decision:
    """`status` None: nothing to say. The status is written before any action is taken."""

    status: dict[str, Any] | None = None
    actions: tuple[Action, ...] = ()
    requeue_at: datetime | None = None
