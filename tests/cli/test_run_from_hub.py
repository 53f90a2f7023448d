"""The first command of an engineer, `llem run --model gpt2 --backend pytorch`, against a hub on loopback."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.process import llem
from fakes.hub import Hub
from llenergymeasure import ExperimentResult
from llenergymeasure.datasets import AIENERGYSCORE_COMMIT, AIENERGYSCORE_REPO

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPTS = ["Why is the sky blue?", "Count to three.", "Name a river.", "Write a haiku about rain."]
SHORT = ("-n", "3", "--set", "max_output_tokens=8", "--set", "warmup={n_warmup: 1, max_output_tokens: 2}")

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of GPT-2's shape, two layers small, with seeded random weights."""
    sys.path.insert(0, str(ROOT / "tools"))
    from random_model import build
    from transformers import GPT2Config

    config = GPT2Config(
        n_layer=2, n_embd=64, n_head=2, n_positions=256, vocab_size=320, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    return build(config, tmp_path_factory.mktemp("gpt2") / "gpt2", dtype="float32")


@pytest.fixture
def hub(gpt2: Path) -> Iterator[Hub]:
    """A hub with gpt2 (also under its old name without an owner, as the real one) and the AI Energy Score set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": PROMPTS}), sink)
    with Hub() as server:
        server.add("openai-community/gpt2", gpt2, commit=COMMIT, tags={"v1": "f" * 40})
        server.add(
            AIENERGYSCORE_REPO,
            {"data/train-00000.parquet": sink.getvalue().to_pybytes()},
            kind="datasets",
            commit=AIENERGYSCORE_COMMIT,
        )
        _redirect_short_name(server)
        yield server


def _redirect_short_name(server: Hub) -> None:
    """The real hub answers the old name `gpt2` with 307 to `openai-community/gpt2`."""
    inner: Any = server._server.RequestHandlerClass

    class Redirecting(inner):
        def _route(self) -> None:
            for old, new in {
                "/api/models/gpt2": "/api/models/openai-community/gpt2",
                "/gpt2/": "/openai-community/gpt2/",
            }.items():
                if self.path.startswith(old):
                    return self._send(307, b"", {"Location": new + self.path.removeprefix(old)})
            return super()._route()

    server._server.RequestHandlerClass = Redirecting


def test_gpt2_is_measured_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Model and prompts come from the hub; the record holds the resolved commit and that the weights are random."""
    ended = llem(
        "run", "--model", "gpt2", "--backend", "pytorch", *SHORT, "-o", "out", cwd=tmp_path, env=hub.environment()
    )

    assert ended.code == 0, ended.err
    (file,) = (tmp_path / "out").glob("gpt2_*/result.json")
    result = ExperimentResult.from_json(file)
    assert result.model == "gpt2"
    assert result.model_revision == COMMIT
    assert result.random_weights is True
    assert result.effective_config["dataset"] == "aienergyscore"
    assert result.requests == 3
    assert result.output_tokens == 3 * 8
    assert result.request_input_tokens == [len(p.encode()) for p in PROMPTS[:3]]
    assert result.energy_total_j is None
    assert result.verdict.state in ("unmeasured", "estimated")
    assert any(w.startswith("random_weights:") for w in result.measurement_warnings)
    assert COMMIT[:12] in ended.out
    (said,) = ended.err.split("\n")[:-1]  # how long it will take, and no bars of other libraries off a terminal
    assert said.startswith("note: no energy is measured: ")
    assert said.endswith("one pass over the prompts")
    assert "\r" not in ended.err


def test_second_run_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    """What was fetched once is cached: with the hub gone the same command still measures the same commit."""
    words = ("run", "--model", "gpt2", "--backend", "pytorch", *SHORT, "--json")
    first = llem(*words, cwd=tmp_path, env=hub.environment())

    second = llem(*words, cwd=tmp_path, env=hub.environment() | {"HF_ENDPOINT": "http://127.0.0.1:9"})

    assert (first.code, second.code) == (0, 0), second.err
    a, b = json.loads(first.out), json.loads(second.out)
    assert b["model_revision"] == a["model_revision"] == COMMIT
    assert b["dataset_sha256"] == a["dataset_sha256"]
    assert b["request_output_tokens"] == a["request_output_tokens"]


def test_revision_flag_is_resolved_to_its_commit(hub: Hub, tmp_path: Path) -> None:
    """--revision takes a tag; the record has the commit behind it."""
    words = (
        "run",
        "--model",
        "openai-community/gpt2",
        "--revision",
        "v1",
        "-d",
        "builtin",
        *SHORT,
        "--json",
        "--set",
        "max_input_tokens=64",
    )

    ended = llem(*words, cwd=tmp_path, env=hub.environment())

    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["model_revision"] == "f" * 40
