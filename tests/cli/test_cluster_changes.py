"""What the verbs that change a cluster ask of it, without a cluster."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from cli.cluster_objects import experiment, study
from llenergymeasure.cluster_changes import _change, _suspension
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.kubectl import Kubectl, Said


@dataclass(frozen=True)
class Scripted(Kubectl):
    """A kubectl that knows these objects and keeps the patches that it is given."""

    program: str = "kubectl"
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    patches: list[dict[str, Any]] = field(default_factory=list)

    def run(self, *words: str, stdin: str = "") -> Said:
        if words[0] == "get":
            found = self.objects.get(words[1].partition("/")[2])
            wanted = found is not None and found["kind"].lower() in words[1].replace("ies.", "y.").replace("s.", ".")
            return Said(json.dumps(found) if wanted else "")
        (patch,) = (w.removeprefix("--patch=") for w in words if w.startswith("--patch="))
        self.patches.append(json.loads(patch)["spec"])
        return Said("")


def alone() -> dict[str, Any]:
    """An experiment of no study."""
    found = experiment()
    del found["spec"]["studyRef"], found["metadata"]["ownerReferences"]
    found["metadata"] |= {"name": "alone", "resourceVersion": "7"}
    return found


@pytest.mark.parametrize("kind", ["study", "experiment"])
def test_cancel_ends_what_runs_of_both_kinds(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An experiment of its own is stopped at once, too: that is what the verb says."""
    obj = alone() if kind == "experiment" else study()
    obj["metadata"]["resourceVersion"] = "7"
    name = obj["metadata"]["name"]
    kubectl = Scripted(objects={name: obj})

    for policy in ("Immediate", "Drain", None):
        _change(kubectl, name, _suspension(policy), "{name}")

    assert kubectl.patches == [
        {"suspend": True, "suspendPolicy": "Immediate"},
        {"suspend": True, "suspendPolicy": "Drain"},
        {"suspend": False},
    ]
    assert capsys.readouterr().out.split() == [name] * 3


@pytest.mark.parametrize(
    ("lives", "words"), [(True, "use sweep"), (False, "its study sweep is gone")], ids=["study lives", "study is gone"]
)
def test_a_run_of_a_study_is_left_to_it(lives: bool, words: str) -> None:
    """And nobody is sent to a study that does not exist."""
    child = experiment()
    name = child["metadata"]["name"]
    kubectl = Scripted(objects={name: child, **({"sweep": study()} if lives else {})})

    with pytest.raises(ConfigError) as said:
        _change(kubectl, name, _suspension("Immediate"), "{name}")

    assert words in str(said.value)
    assert ("llem delete" in str(said.value)) is not lives
    assert kubectl.patches == []
