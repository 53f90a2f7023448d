"""The model and the commands that the benchmarks on a real GPU share.

Model: eight layers with the dimensions of Llama-3-70B's (7.1 B weights with embeddings), seeded random weights of
realistic scale, bf16. A static cache makes transformers compile the decode step into CUDA graphs: without them a
server's CPU, not its GPU, sets the pace at small batches, and the figures would be the CPU's.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LARGE = ("--layers", "8", "--hidden", "8192", "--heads", "64", "--kv-heads", "8", "--intermediate", "28672")
SMALL = ("--layers", "2", "--hidden", "4096", "--heads", "32", "--kv-heads", "8", "--intermediate", "14336")
TMP = Path(tempfile.gettempdir())
INPUT_TOKENS, OUTPUT_TOKENS = 256, 128

WORK = {
    "backend": "pytorch",
    "dataset": {"synthetic": {"input_len": INPUT_TOKENS, "output_len": OUTPUT_TOKENS}},
    "n": 8,
    "max_output_tokens": OUTPUT_TOKENS,
    "pytorch": {"cache_implementation": "static"},
    # the compiled step is made for one cache length: warm-up must have the work's own lengths
    "warmup": {"n_warmup": 2, "max_output_tokens": OUTPUT_TOKENS, "thermal_floor_seconds": 40},
    "energy": {"backend": "nvml"},
    "output": {"raw_samples": True},
}


def environment(**more: str) -> dict[str, str]:
    """Variables under which this checkout's code runs; compiled Python files are kept, which starts processes fast."""
    paths = [*more.pop("paths", "").split(os.pathsep), str(ROOT / "runner"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PYTHONPYCACHEPREFIX": str(TMP / "llem-pycache"),
        "TORCHINDUCTOR_CACHE_DIR": str(TMP / "llem-inductor"),
        **more,
    }


def model(sizes: tuple[str, ...] = LARGE, *, device: str = "cuda") -> Path:
    """The model's folder, made if it is not there yet (14 GB for the large one)."""
    folder = TMP / ("llem-7b" if sizes == LARGE else "llem-small")
    if not (folder / "config.json").exists():
        command = [sys.executable, str(ROOT / "tools/random_model.py"), str(folder), *sizes, "--device", device]
        subprocess.run(command, env=environment(), check=True)
    return folder


def llem(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line with this checkout's code; its stderr is shown, its stdout given back."""
    command = [sys.executable, "-m", "llenergymeasure.cli", *arguments]
    print("$ llem", *arguments, flush=True)
    started_s = time.monotonic()
    done = subprocess.run(command, env=env or environment(), stdout=subprocess.PIPE, text=True, check=False)
    print("" if "--json" in arguments else done.stdout, f"[{time.monotonic() - started_s:.0f} s]", flush=True)
    return done


def experiment(folder: Path, model_path: Path, **changes: Any) -> Path:
    """An experiment file of the work above, with changes on its top level."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "experiment.yaml"
    file.write_text(json.dumps({"model": str(model_path), **WORK, **changes}))  # JSON is YAML
    return file


def stamp(command: str) -> dict[str, Any]:
    """What every record says of itself."""
    return {"command": command, "date": time.strftime("%Y-%m-%d", time.gmtime())}
