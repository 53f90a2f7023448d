"""What things are called, and where results lie: names, owners, folders and URIs. Pure.

All are derived, so that every operator at any time gives the same.
"""

from collections.abc import Mapping
from typing import Any

RESULTS_FOLDER = "/results"
"""Where the pod has the volume of results."""


def child_name(study: str, index: int, config_hash: str) -> str:
    """Name of a run's experiment: derived, so that every operator at any time makes the same."""
    return f"{study}-{index:05d}-{config_hash[:6]}"


def job_name(experiment: str, attempt: int) -> str:
    """Name of an attempt's Job."""
    return f"{experiment}-a{attempt}"


def owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    """A controller reference that does not hold the owner's deletion up."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }


def owner_uid(obj: Mapping[str, Any]) -> str | None:
    """UID of the controller of an object."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((o["uid"] for o in owners if o.get("controller")), None)


def study_folder(owner: Mapping[str, Any]) -> str:
    """Folder of a study (or a standalone experiment) below the destination: its name and eight digits of its UID."""
    return f"{owner['metadata']['name']}-{owner['metadata']['uid'][:8]}"


def study_uri(results: Mapping[str, Any], owner: Mapping[str, Any]) -> str:
    """Where a study's results are, as a user reads it; `pvc://claim/path` for a volume."""
    if results.get("pvc"):
        path = "/".join(p for p in (results["pvc"].get("subPath", "").strip("/"), study_folder(owner)) if p)
        return f"pvc://{results['pvc']['claimName']}/{path}"
    return f"{results['uri'].rstrip('/')}/{study_folder(owner)}"


def run_folder(index: int, cycle: int, config_hash: str) -> str:
    """Folder of one run's attempts in its study's."""
    return f"{index:05d}-{config_hash[:8]}-c{cycle}"


def run_uri(results: Mapping[str, Any], owner: Mapping[str, Any], folder: str) -> str:
    """The prefix of one run's attempts, as the pod reaches it."""
    if results.get("pvc"):
        return f"file://{RESULTS_FOLDER}/{study_folder(owner)}/{folder}"
    return f"{study_uri(results, owner)}/{folder}"


def public_uri(uri: str, results: Mapping[str, Any]) -> str:
    """A result's place in words that hold outside the pod."""
    pvc = results.get("pvc")
    if not pvc:
        return uri
    base = "/".join(p for p in (pvc["claimName"], pvc.get("subPath", "").strip("/")) if p)
    return uri.replace(f"file://{RESULTS_FOLDER}", f"pvc://{base}", 1)
