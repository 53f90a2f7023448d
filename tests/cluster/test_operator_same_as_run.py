"""One plain study file, by `llem run`, by `llem apply` and by kubectl: the same plan, the same hashes, the same results."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.process import llem
from cluster.operators import Bench, reason
from cluster.oracles import sound

pytestmark = pytest.mark.cluster

DESIGN = """
model: pretended
backend: synthetic
dataset: builtin
n: 3
max_output_tokens: 4
warmup: {n_warmup: 1}
baseline: {enabled: false}
energy: {backend: simulated}
measurement: {min_duration_seconds: 0}
sweep:
  synthetic.batch_size: [1, 2]
"""
PLAIN = f"{DESIGN}execution: {{n_cycles: 2, cycle_order: shuffled, config_gap_seconds: 0, cycle_gap_seconds: 0}}\n"
RESOURCE = f"""
apiVersion: llem.dev/v1alpha1
kind: EnergyStudy
metadata: {{name: by-kubectl}}
spec:
  suspend: true
  execution: {{nCycles: 2, cycleOrder: shuffled, configGapSeconds: 0, cycleGapSeconds: 0}}
  design:
{DESIGN.replace(chr(10), chr(10) + "    ")}
"""
MAY_DIFFER = re.compile(
    r"""
    experiment_id                                   # names this measurement
    | environment_snapshot\..*                      # where it was made
    | phases\.\w+\.(start_s|end_s)                  # when, and how long each part took
    | start_time | end_time | steady_state_window\[\d\]
    | duration_s | .*tokens_per_second | requests_per_second | latency\.\w+_ms
    | warmup\.(latencies_ms\[\d+\]|final_cv)
    | conditions\.(power_drift|pace_drift|peak_power_w)
    | energy_\w+_j | energy_per_device_j\..* | energy_breakdown\.raw_j | tokens_per_joule | mean_power_w
    | tokens_per_second_per_watt | uncertainty\.\w+
    | verdict\.reasons\[\d+\]\.sentence             # cites the length of the window
    """,
    re.VERBOSE,
)
"""What a result may differ in: its name, the measurement, the machine. Nothing of what was asked for or of tokens."""


def differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Paths at which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differing(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from differing(*pair, f"{path}[{place}]")
    elif one != other:
        yield path


def test_plain_file_runs_alike_here_and_on_the_cluster(bench: Bench, tmp_path: Path) -> None:
    """An unquoted n and all: equal hashes and order by three ways, results that differ in nothing but what was measured."""
    (tmp_path / "plain.yaml").write_text(PLAIN, encoding="utf-8")
    cluster = {"KUBECONFIG": str(bench.kube.kubeconfig), "KUBECTL": str(bench.kube.kubectl)}

    applied = llem("apply", "plain.yaml", "-n", bench.kube.namespace, cwd=tmp_path, env=cluster)
    assert applied.code == 0, applied.err
    bench.kube.apply(RESOURCE)
    here = llem("run", "plain.yaml", "-o", "here", "-q", cwd=tmp_path)
    assert here.code == 0, here.err
    study = bench.finished("plain")

    (folder,) = (tmp_path / "here").iterdir()
    manifest = json.loads((folder / "study_manifest.json").read_bytes())
    rows = {row["index"]: row for row in manifest["rows"]}
    assert reason(study) == "Completed"
    assert study["spec"]["design"]["n"] == 3
    assert bench.get("by-kubectl")["spec"]["design"]["false"] == 3
    by_kubectl = bench.until("est", "by-kubectl", lambda s: reason(s, "Expanded") == "AllCreated")
    for key in ("designHash", "planHash"):
        assert study["status"][key] == by_kubectl["status"][key]
    assert study["status"]["designHash"] == manifest["study_design_hash"]

    children = bench.children("plain")
    for of_study in (children, bench.children("by-kubectl")):
        planned = {c["spec"]["index"]: (c["spec"]["configHash"], c["spec"]["cycle"]) for c in of_study}
        assert planned == {i: (r["config_hash"], r["cycle"]) for i, r in rows.items()}
    began = sorted(children, key=lambda c: str(c["status"]["startTime"]))
    assert [c["spec"]["index"] for c in began] == sorted(rows, key=lambda i: str(rows[i]["started_at"]))

    for child in children:
        row = rows[child["spec"]["index"]]
        stored = Path(bench.store.folder) / child["status"]["result"]["uri"].removeprefix("s3://")
        there, ours = (json.loads(p.read_bytes()) for p in (stored, folder / row["result_uri"]))
        assert there["measurement_config_hash"] == ours["measurement_config_hash"] == row["config_hash"]
        assert {p for p in differing(there, ours) if not MAY_DIFFER.fullmatch(p)} == set()
    assert sound(bench, "plain") == []
    assert "study.json" in {p.name for p in bench.folder(study).iterdir()}
