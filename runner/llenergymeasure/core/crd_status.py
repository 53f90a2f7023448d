"""The status of both custom resources: what has happened so far, small enough for ten thousand runs.

The status of an EnergyExperiment is one row of the manifest; an EnergyStudy holds counts, ranges and a compact table.
"""

from pydantic.alias_generators import to_camel

from llenergymeasure.core.crd_schema import (
    Schema,
    by_default,
    choice,
    decimal,
    flag,
    integer,
    keyed,
    listing,
    moment,
    record,
    text,
)
from llenergymeasure.core.manifest import LEGAL
from llenergymeasure.core.resources import MAX_RUNS
from llenergymeasure.core.termination import Numbers

MAX_ROWS = 250
MAX_INTERVALS = 65_536  # characters: every second one of ten thousand runs, twice over
UUID = 36
SHA256 = r"^[0-9a-f]{64}$"
OUTCOMES = ("Completed", "Failed", "Lost", "Cancelled", "Preempted")

_NUMBERS = {
    "energy_per_output_token_millijoules": "Energy per output token, mJ.",
    "energy_total_joules": "Energy of the window, all GPUs of the run, J.",
    "energy_adjusted_joules": "Energy of the window less what the idle GPUs would have used, J.",
    "baseline_watts": "Idle power that was subtracted, W.",
    "tokens_per_second": "Output tokens per second of the window, tokens/s.",
    "output_tokens": "Output tokens of the window.",
    "requests": "Requests of the window.",
    "duration_seconds": "Length of the window, s.",
    "latency_p50_milliseconds": "Median latency of a batch, ms; of a request where requests run side by side.",
    "memory_peak_mebibytes": "Highest GPU memory use, MiB.",
}


def _conditions() -> Schema:
    """Conditions exactly as metav1.Condition has them."""
    condition = record(
        "One statement about the object.",
        {
            "type": text("What the statement is about.", 316),
            "status": choice("Whether it holds.", ["True", "False", "Unknown"]),
            "observedGeneration": integer("Generation of the spec that the statement is about."),
            "lastTransitionTime": moment("When the status last changed."),
            "reason": text(
                "One word for a program.", 1_024, shortest=1, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
            ),
            "message": text("One sentence for a person.", 32_768),
        },
        required=["type", "status", "lastTransitionTime", "reason", "message"],
    )
    return keyed("Statements about the object; Finished is true after any end.", condition, 16, key="type")


def _baseline() -> Schema:
    return record(
        "Idle power of one GPU.",
        {
            "gpuUUID": text("The GPU.", 64),
            "driver": text("Version of its driver.", 63),
            "kind": text("Which idle: context, bare or loaded.", 63),
            "powerMilliwatts": integer("Idle power, mW."),
            "measuredAt": moment("When it was measured."),
            "conditions": text("Digest of the GPU's settings that it holds for: driver, limits, clocks, modes.", 63),
            "node": text("Node of the GPU.", 253),
        },
        required=["gpuUUID", "kind", "powerMilliwatts", "measuredAt"],
    )


def _head() -> Schema:
    return {
        "observedGeneration": integer("Generation of the spec that this status is about."),
        "observedRetryEpoch": integer("The retryEpoch that has been acted upon."),
        "finished": flag("Nothing more will happen unless the spec changes."),
        "startTime": moment("When the first attempt began."),
        "completionTime": moment("When it finished."),
        "conditions": _conditions(),
    }


_NEVER = "1970-01-01T00:00:00Z"


def _until_seen(status: Schema, *conditions: tuple[str, str, str]) -> Schema:
    """The status of an object that no operator has looked at: the API server shows it, nobody has to write it."""
    words = ("type", "status", "message")
    found = [dict(zip(words, c, strict=True)) | {"reason": "Pending", "lastTransitionTime": _NEVER} for c in conditions]
    return by_default(status, {"finished": False, "conditions": found})


def study_status() -> Schema:
    """`status` of an EnergyStudy."""
    return _until_seen(_study_status(), ("Finished", "False", "waits for the operator"))


def _study_status() -> Schema:
    return record(
        "What has happened so far; written by the operator.",
        {
            **_head(),
            "designHash": text("Hash of the design as accepted; from then on the design is fixed.", 64),
            "planHash": text("Hash of the list of runs.", 64),
            "expanderVersion": text("Version of llem that made the list of runs.", 63),
            **_progress(),
            **_rows(),
            **_details(),
            "resultsURI": text("Where the results of this study are.", 2_048),
            "nextEligibleTime": moment("The next run does not start before; a pause between runs lasts until then."),
        },
    )


def _progress() -> Schema:
    states: dict[str, str] = {"total": "Runs of the study.", **{str(s): f"Runs that are {s}." for s in LEGAL}}
    states |= {
        "invalid": "Completed runs whose verdict is invalid.",
        "skipped": "Combinations of the sweep that are no valid experiment.",
    }
    counts = {k: integer(words, 0, 1_000_000) for k, words in states.items()}
    ranges = {
        s: text(f"Indexes of the runs that are {s}, e.g. 0-41,43.", MAX_INTERVALS, pattern=r"^[0-9,-]*$")
        for s in ("running", "completed", "failed", "invalid", "cancelled")
    }
    return {
        "counts": record("Number of runs by state.", counts),
        "indexes": record("Which runs are in which state, as ranges.", ranges),
    }


def _rows() -> Schema:
    row = record(
        "One run.",
        {
            "index": integer("Number of the run in the study, from 0.", 0, MAX_RUNS),
            "cycle": integer("Which repetition, from 1.", 1, MAX_RUNS),
            "hash": text("First characters of the hash of its configuration.", 16),
            "status": choice("What has become of it.", LEGAL),
            "attempt": integer("Attempts so far.", 0, 1_000),
            "nodeIndex": integer("Its node: place in `nodes`.", 0, MAX_ROWS),
            "millijoulesPerOutputToken": decimal("Energy per output token, mJ."),
        },
        required=["index", "status"],
    )
    node = text("Name of a node.", 253)
    return {
        "manifestMode": choice(
            f"Inline: every run has a row in `manifest` (up to {MAX_ROWS} runs). Ranges: see `indexes` and the "
            "EnergyExperiments.",
            ["Inline", "Ranges"],
        ),
        "nodes": listing("Nodes that runs were made on.", node, MAX_ROWS),
        "manifest": listing("A row for every run, in order of index.", row, MAX_ROWS),
    }


def _details() -> Schema:
    active = record(
        "A run that is under way or waits for its pod.",
        {
            "experiment": text("Name of the EnergyExperiment.", 63),
            "attempt": integer("Which attempt.", 1, 1_000),
            "node": text("Its node.", 253),
            "since": moment("When the attempt began."),
            "message": text("What it does or waits for.", 1_024),
        },
        required=["experiment"],
    )
    failure = record(
        "A run that failed lately.",
        {
            "experiment": text("Name of the EnergyExperiment.", 63),
            "reason": text("Why, in one word.", 63),
            "message": text("Why, in one sentence.", 256),
        },
        required=["experiment"],
    )
    skipped = record(
        "Combinations refused for one reason.",
        {"reason": text("Why.", 1_024), "count": integer("How many.", 0, 1_000_000)},
        required=["reason", "count"],
    )
    return {
        "baselines": listing("Idle power of the GPUs seen lately, used again while it is fresh.", _baseline(), 16),
        "active": listing("Runs under way.", active, 16),
        "recentFailures": listing("The last runs that failed.", failure, 5),
        "skipped": listing("Why combinations of the sweep are not run.", skipped, 10),
        "best": record(
            "The configuration with the lowest energy per output token (mean over its cycles), among those whose "
            "cycles are all valid.",
            {
                "experiment": text("One of its EnergyExperiments.", 63),
                "configHash": text("Hash of the configuration.", 64),
                "configSummary": text("The configuration in a few words.", 512),
                "energyPerOutputTokenMillijoules": decimal("Mean energy per output token, mJ."),
                "cycles": integer("Cycles that the mean is over.", 1, MAX_RUNS),
            },
        ),
    }


def experiment_status() -> Schema:
    """`status` of an EnergyExperiment."""
    unseen = ("Accepted", "Unknown", "waits for the operator"), ("Finished", "False", "waits for its turn")
    return _until_seen(_experiment_status(), *unseen)


def _experiment_status() -> Schema:
    kinds = ("measurement", "infrastructure", "invalid")
    used = {k: integer(f"Retries used of retry.{k}.", 0, 1_000) for k in kinds}
    return record(
        "What has happened so far; written by the operator.",
        {
            **_head(),
            "attempt": integer("Number of the latest attempt, from 1.", 0, 1_000),
            "node": text("Node of the latest attempt.", 253),
            "retriesUsed": record("Retries so far, by what went wrong.", used),
            "adoptFrom": integer("First attempt whose stored result may be taken for this run's.", 1, 1_001),
            "attempts": listing("The latest attempts.", _attempt(), 10),
            **_outcome(),
        },
    )


def _attempt() -> Schema:
    return record(
        "One attempt: a Job and its pod.",
        {
            "attempt": integer("Its number, from 1.", 1, 1_000),
            "jobName": text("Name of the Job.", 63),
            "jobUID": text("UID of the Job.", UUID),
            "podName": text("Name of the pod.", 253),
            "podUID": text("UID of the pod.", UUID),
            "node": text("Node of the pod.", 253),
            "created": moment("When the Job was decided upon."),
            "start": moment("When the runner started."),
            "end": moment("When the runner ended."),
            "measurementStart": moment("Start of the measured window."),
            "measurementEnd": moment("End of the measured window."),
            "outcome": choice("What came of it.", OUTCOMES),
            "reason": text("Why, in one word.", 128),
            "exitCode": integer("Exit code of the runner.", -255, 255),
            "message": text("Why, in one sentence.", 1_024),
        },
        required=["attempt"],
    )


def _outcome() -> Schema:
    whole = {"output_tokens", "requests"}
    numbers = {
        to_camel(name): integer(_NUMBERS[name]) if name in whole else decimal(_NUMBERS[name])
        for name in Numbers.model_fields
    }
    verdict = {
        "verdict": text("Whether the energy can be believed: valid, invalid, estimated or unmeasured.", 63),
        "synthetic": flag("Pretended by an engine or a sensor, not measured."),
        "energyNullReason": text("Why there is no energy.", 300),
    }
    return {
        "result": record(
            "Where the result is.",
            {
                "uri": text("Address of result.json.", 2_048),
                "sha256": text("Its SHA-256.", 64, pattern=SHA256),
                "sizeBytes": integer("Its size, bytes."),
                "schemaVersion": text("Version of its schema.", 32),
                "adopted": flag("It was measured by an earlier attempt and found again."),
            },
            atomic=True,
        ),
        "summary": record("The headline numbers of the result.", {**verdict, **numbers}, atomic=True),
        "environment": record(
            "What the run was made on.",
            {
                "gpuProduct": text("Product name of the GPUs.", 128),
                "gpuUUIDs": listing("The GPUs.", text("UUID of a GPU.", 64), 64),
                "driver": text("Version of the GPU driver.", 63),
                "imageID": text("Digest of the image that ran.", 1_024),
            },
            atomic=True,
        ),
        "baselines": listing("Idle power that this run measured, for later runs.", _baseline(), 16),
        "warnings": listing("What to know about the result.", text("A warning.", 1_024), 10),
        "logTail": text("Last lines of the log of an attempt that failed.", 2_048),
    }
