"""Remembers what acceptance said of each study, since judging a large one takes a second."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from llem_operator.acceptance import Accepted, Configuration, Refused, accept_experiment, accept_study
from llem_operator.objects import template_of
from llem_operator.settings import Settings

log = logging.getLogger(__name__)


class Judgements:
    """Acceptance, once per generation of a study."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._studies: dict[str, tuple[int, Accepted | Refused]] = {}

    async def study(self, study: Mapping[str, Any]) -> Accepted | Refused:
        """What acceptance says of a study; judged in a thread, so that probes and other studies go on."""
        uid, generation = study["metadata"]["uid"], int(study["metadata"].get("generation") or 0)
        known = self._studies.get(uid)
        if known is None or known[0] != generation:
            known = (generation, await asyncio.to_thread(_accept, study, self._settings))
            self._studies[uid] = known
        return known[1]

    def experiment(self, experiment: Mapping[str, Any], study: Mapping[str, Any] | None) -> Configuration | Refused:
        """What acceptance says of an experiment; a millisecond, so it is not remembered."""
        try:
            template = template_of(experiment, study)
            return accept_experiment(experiment, template, self._settings, in_study=study is not None)
        except Exception as err:  # the same door
            log.exception("experiment %s cannot be judged", experiment["metadata"]["name"])
            return Refused("InternalError", f"{type(err).__name__}: {err}")

    def forget(self, uid: str) -> None:
        """Drop a study that is gone."""
        self._studies.pop(uid, None)


def _accept(study: Mapping[str, Any], settings: Settings) -> Accepted | Refused:
    """Acceptance that always answers: an object that it cannot judge must not wait for ever without a word."""
    try:
        return accept_study(study, settings)
    except Exception as err:  # the door between a user's object and the loop
        log.exception("study %s cannot be judged", study["metadata"]["name"])
        return Refused("InternalError", f"{type(err).__name__}: {err}")
