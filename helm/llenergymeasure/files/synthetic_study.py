"""What `helm test` runs: makes a synthetic study, waits for its end, says what came of it. Standard library only."""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAME, NAMESPACE = os.environ["STUDY_NAME"], os.environ["STUDY_NAMESPACE"]
SERVER = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
STUDIES = f"{SERVER}/apis/llem.dev/v1alpha1/namespaces/{NAMESPACE}/energystudies"
STUDY = {
    "apiVersion": "llem.dev/v1alpha1",
    "kind": "EnergyStudy",
    "metadata": {"name": NAME},
    "spec": {
        "design": {
            "model": "pretended",
            "backend": "synthetic",
            "dataset": "builtin",
            "n": 4,
            "max_output_tokens": 16,
            "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
            "baseline": {"duration_seconds": 5},
            "energy": {"backend": "simulated"},
            "measurement": {"min_duration_seconds": 10},
            "sweep": {"synthetic.batch_size": [1, 2]},
        },
        "execution": {"nCycles": 1, "configGapSeconds": 0, "cycleGapSeconds": 0},
        "parallelism": 2,
        "template": {
            "exclusivity": "GPU",
            "gpu": {"count": 0},
            "resources": json.loads(os.environ["STUDY_RESOURCES"]),
            "deadlines": {"pendingSeconds": int(os.environ["TIMEOUT_SECONDS"])},
        },
    },
}


def request(method: str, url: str, body: object = None) -> dict:
    """One request to the API server as this pod's account."""
    token = (ACCOUNT / "token").read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    asked = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(asked, context=trust, timeout=30) as answer:
        return json.load(answer)


def remove() -> None:
    """Delete the study, if it is there, and wait until it is gone."""
    try:
        request("DELETE", f"{STUDIES}/{NAME}")
        while True:
            time.sleep(1)
            request("GET", f"{STUDIES}/{NAME}")
    except urllib.error.HTTPError as err:
        if err.code != 404:
            raise


def main() -> int:
    """Run the study; 0 if all of it was measured, or if it is only refused for want of a destination."""
    remove()
    request("POST", STUDIES, STUDY)
    said, deadline = "", time.monotonic() + int(os.environ["TIMEOUT_SECONDS"])
    while time.monotonic() < deadline:
        status = request("GET", f"{STUDIES}/{NAME}").get("status") or {}
        found = {c["type"]: c for c in status.get("conditions") or ()}
        now = f"{found.get('Finished', {}).get('reason')}: {found.get('Finished', {}).get('message')}"
        if now != said:
            print(now, flush=True)
            said = now
        if found.get("Accepted", {}).get("status") == "False":
            print(found["Accepted"]["message"])
            print("the operator answers; without a destination for results nothing can be measured")
            remove()
            return 0 if os.environ["DESTINATION"] == "no" else 1
        if found.get("Finished", {}).get("status") == "True":
            done = found.get("Succeeded", {}).get("status") == "True"
            print(json.dumps({"counts": status.get("counts"), "best": status.get("best")}))
            if done:
                remove()
            return 0 if done else 1
        time.sleep(2)
    print(f"no end after {os.environ['TIMEOUT_SECONDS']} s; see: kubectl describe est {NAME} -n {NAMESPACE}")
    return 1


sys.exit(main())
