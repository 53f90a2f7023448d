"""The two custom resource definitions, made from the configuration models: structural, described, bounded."""

from typing import Any

from llenergymeasure.core import crd_design
from llenergymeasure.core.crd_schema import (
    Schema,
    by_default,
    choice,
    flag,
    integer,
    name_of,
    record,
    rule,
    text,
)
from llenergymeasure.core.crd_status import experiment_status, study_status
from llenergymeasure.core.crd_template import MONTH_SECONDS, deadlines, results, retry, template
from llenergymeasure.core.resources import (
    EXPERIMENT_KIND,
    EXPERIMENT_PLURAL,
    GROUP,
    MAX_EXPERIMENT_NAME,
    MAX_RUNS,
    MAX_STUDY_NAME,
    STUDY_KIND,
    STUDY_PLURAL,
    VERSION,
)

SUSPEND_POLICIES = ("Drain", "Immediate")
LABEL_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""A name without dots, since Jobs, pods and labels are named after it."""


def definitions() -> tuple[dict[str, Any], dict[str, Any]]:
    """Both CustomResourceDefinitions as they are applied."""
    return _study(), _experiment()


def _definition(kind: str, plural: str, short: str, schema: Schema, **more: Any) -> dict[str, Any]:
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        **more,
    }
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [short],
        "categories": ["llem"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _root(description: str, spec: Schema, status: Schema, longest: int, rules: list[Schema]) -> Schema:
    name = text("Name of the object; a label without dots.", longest, pattern=LABEL_NAME)
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this kind: llem.dev/v1alpha1."},
            "kind": {"type": "string", "description": "The kind of the object."},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": rules,
    }


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}


def _condition(kind: str, part: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{part}'


# --- EnergyStudy


def _study() -> dict[str, Any]:
    description = "A study of the energy that configurations of a language model use per token: each run is a Job."
    schema = _root(description, _study_spec(), study_status(), MAX_STUDY_NAME, _study_rules())
    columns = [
        _column("State", _condition("Finished", "reason")),
        _column("Total", ".status.counts.total", "integer"),
        _column("Done", ".status.counts.completed", "integer"),
        _column("Failed", ".status.counts.failed", "integer"),
        _column("Invalid", ".status.counts.invalid", "integer"),
        _column("Running", ".status.counts.running", "integer"),
        _column("Best-millijoules/token", ".status.best.energyPerOutputTokenMillijoules"),
        _column("Age", ".metadata.creationTimestamp", "date"),
        _column("Design", ".status.designHash", wide=True),
        _column("Next", ".status.nextEligibleTime", wide=True),
        _column("Message", _condition("Finished", "message"), wide=True),
    ]
    fields = [{"jsonPath": ".status.finished"}]
    return _definition(
        STUDY_KIND, STUDY_PLURAL, "est", schema, additionalPrinterColumns=columns, selectableFields=fields
    )


def _study_spec() -> Schema:
    hour = 3_600
    retention = record(
        "What is kept on the cluster.",
        {
            "jobTTLSecondsAfterResult": by_default(
                integer(
                    "How long a Job stays after its attempt has ended, with a result or without, s; llem logs and "
                    "llem results -o need it.",
                    0,
                    MONTH_SECONDS,
                ),
                hour,
            )
        },
    )
    policy = choice(
        "What suspend does to runs under way. Drain: they end first. Immediate: they are stopped and run again later.",
        SUSPEND_POLICIES,
    )
    return record(
        "What is wanted.",
        {
            "design": crd_design.design(),
            "execution": crd_design.execution(),
            "parallelism": by_default(
                integer("Runs at the same time; each needs its own GPUs. A lower number stops nothing.", 1, 1_000), 1
            ),
            "suspend": by_default(flag("Start no further run."), False),
            "suspendPolicy": by_default(policy, "Drain"),
            "retry": retry(defaults=True),
            "retryEpoch": by_default(
                integer("Raise it, and failed and invalid runs are made again. May only grow."), 0
            ),
            "template": template(),
            "results": results(),
            "retention": by_default(retention, {}),
        },
        required=["design"],
    )


_ACCEPTED = "has(oldSelf.status) && has(oldSelf.status.designHash)"


def _study_rules() -> list[Schema]:
    def after_acceptance(expression: str, field: str, message: str) -> Schema:
        return rule(f"!({_ACCEPTED}) || {expression}", message, f".spec.{field}")

    def fixed(field: str, how: str = "make a new study under another name") -> Schema:
        return after_acceptance(_same(f"spec.{field}"), field, f"{field} is fixed once the study is accepted; {how}")

    cycles = f"self.spec.execution.{crd_design.CYCLES} >= oldSelf.spec.execution.{crd_design.CYCLES}"
    growing = f"execution.{crd_design.CYCLES} may only grow; finished runs stay"
    return [
        after_acceptance(
            "self.spec.design == oldSelf.spec.design",
            "design",
            "design is fixed once the study is accepted; make a new study under another name",
        ),
        after_acceptance(cycles, f"execution.{crd_design.CYCLES}", growing),
        *(fixed(f"execution.{name}") for name in crd_design.FIXED_IN_EXECUTION),
        fixed("template"),
        fixed("results"),
        rule("self.spec.retryEpoch >= oldSelf.spec.retryEpoch", "retryEpoch may only grow", ".spec.retryEpoch"),
    ]


def _same(path: str) -> str:
    """An optional field has not changed; written out, since `.?` has no bound that the API server would accept."""
    new, old = f"self.{path}", f"oldSelf.{path}"
    return f"(has({new}) == has({old}) && (!has({new}) || {new} == {old}))"


# --- EnergyExperiment


def _experiment() -> dict[str, Any]:
    description = "One run: one configuration, one measurement, one result. A study makes its own; others work alone."
    schema = _root(description, _experiment_spec(), experiment_status(), MAX_EXPERIMENT_NAME, _experiment_rules())
    columns = [
        _column("State", _condition("Finished", "reason")),
        _column("Study", ".spec.studyRef.name"),
        _column("Index", ".spec.index", "integer"),
        _column("Cycle", ".spec.cycle", "integer"),
        _column("Node", ".status.node"),
        _column("Millijoules/token", ".status.summary.energyPerOutputTokenMillijoules"),
        _column("Verdict", ".status.summary.verdict"),
        _column("Age", ".metadata.creationTimestamp", "date"),
        _column("Attempt", ".status.attempt", "integer", wide=True),
        _column("Reason", _condition("Succeeded", "reason"), wide=True),
        _column("GPU", ".status.environment.gpuProduct", wide=True),
        _column("Hash", ".spec.configHash", wide=True),
    ]
    fields = [{"jsonPath": ".spec.studyRef.name"}, {"jsonPath": ".status.finished"}]
    return _definition(
        EXPERIMENT_KIND, EXPERIMENT_PLURAL, "eexp", schema, additionalPrinterColumns=columns, selectableFields=fields
    )


_OF_A_STUDY = "Set by the operator for the runs of a study."


def _experiment_spec() -> Schema:
    reference = record(
        f"The study that this is a run of. {_OF_A_STUDY}", {"name": name_of("Its name.")}, required=["name"]
    )
    own = "A run of a study takes it from the study."
    parts = {"template": template(), "results": results(), "retry": retry(defaults=False), "deadlines": deadlines()}
    return record(
        "What is wanted.",
        {
            "config": crd_design.config(),
            "studyRef": reference,
            "index": integer(f"Number of the run in its study, from 0. {_OF_A_STUDY}", 0, MAX_RUNS),
            "cycle": integer(f"Which repetition, from 1. {_OF_A_STUDY}", 1, MAX_RUNS),
            "configHash": text(f"Hash of the configuration. {_OF_A_STUDY}", 64),
            **{k: part | {"description": f"{part['description']} {own}"} for k, part in parts.items()},
            "suspend": flag(f"Do not start. Default: false. {own}"),
            "suspendPolicy": choice(
                "What suspend does to the run under way. Drain: it ends first. Immediate: it is stopped and run again "
                f"later. Default: Drain. {own}",
                SUSPEND_POLICIES,
            ),
            "retryEpoch": integer(f"Raise it, and a failed or invalid run is made again. May only grow. {own}"),
        },
        required=["config"],
    )


_ORIGIN = ("studyRef", "index", "cycle", "configHash")
_REST = ("config", "template", "results", "retry", "deadlines")
_STARTED = "has(oldSelf.spec.studyRef) || (has(oldSelf.status) && oldSelf.status.?attempt.orValue(0) > 0)"


def _experiment_rules() -> list[Schema]:
    origin = [rule(_same(f"spec.{f}"), f"{f} is set by the operator and never changes", f".spec.{f}") for f in _ORIGIN]
    rest = [
        rule(
            f"!({_STARTED}) || {_same(f'spec.{f}')}",
            f"{f} is fixed in a run of a study and after the first attempt; make a new experiment",
            f".spec.{f}",
        )
        for f in _REST
    ]
    epoch = "self.spec.?retryEpoch.orValue(0) >= oldSelf.spec.?retryEpoch.orValue(0)"
    return [*origin, *rest, rule(epoch, "retryEpoch may only grow", ".spec.retryEpoch")]
