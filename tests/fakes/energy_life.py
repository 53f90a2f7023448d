"""Lives one energy source's life in this process and prints what came of it as JSON.

    python -m fakes.energy_life NAME WINDOW_S [WINDOW_S ...]

Zeus and CodeCarbon bind NVML when they are imported, so each life needs an interpreter of its own.
"""

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from llenergymeasure.core import registry


def live(name: str, lengths_s: list[float]) -> dict[str, Any]:
    """Start, one window per length (the first is called window), stop."""
    source = registry.energy_source(name)
    devices = source.devices()
    story: dict[str, Any] = {
        "availability": asdict(source.availability()),
        "devices": [asdict(d) for d in devices],
        "kind": source.KIND,
        "name": source.NAME,
    }
    source.start(devices, interval_s=0.05)
    spans = {}
    for number, length_s in enumerate(lengths_s):
        window = f"window{number or ''}"
        if number:
            time.sleep(1.0)  # the waiting that quiet edges are promised
        opened_s = source.open_window(window)
        time.sleep(length_s)
        spans[window] = (opened_s, source.close_window(window, "quiet"))
    record = source.stop()
    return story | {
        "spans": spans,
        "windows": {n: [asdict(d) for d in parts] for n, parts in record.windows.items()},
        "readings": len(record.readings),
        "series": {u: len(s.ticks) for u, s in record.series.items()},
        "host_energy_j": record.host_energy_j,
        "independent": record.independent,
        "warnings": list(record.warnings),
    }


if __name__ == "__main__":
    print(json.dumps(live(sys.argv[1], [float(a) for a in sys.argv[2:]])))
