"""The AI Energy Score prompts, from a stand-in hub: the pinned commit, fetched once, refused with advice."""

import io
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fakes.hub import Hub

REPO, COMMIT = "AIEnergyScore/text_generation", "2dc92b2ee2cd9776a51ccf08c6c2ab04138370c3"
LOAD = """
import json, sys, time
time.sleep = lambda _seconds: None  # huggingface_hub waits between tries of a broken hub, 23 s in all
from llenergymeasure import datasets
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import LLEMError, run_exit_code
config = ExperimentConfig(model="x", dataset="aienergyscore", n=int(sys.argv[1]))
try:
    found = datasets.load_prompts(config)
    print(json.dumps({"texts": [p.text for p in found.prompts], "sha256": found.sha256}))
except LLEMError as err:
    print(json.dumps([type(err).__name__, run_exit_code(err), str(err)]))
"""
Python = Callable[..., Any]


def _parquet(rows: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"prompt number {i}" for i in range(rows)]}), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with 1,000 prompts as Parquet at the pinned commit, and another set on its main branch."""
    with Hub() as server:
        files = {"data/train-00000-of-00001.parquet": _parquet(1000), "README.md": b"# card"}
        repo = server.add(REPO, files, kind="datasets", commit=COMMIT)
        repo.revisions["main"] = "f" * 40
        yield server


def test_the_pinned_commit_is_read(hub: Hub, python: Python) -> None:
    """A thousand prompts in file order, from the commit that the specification names."""
    found = python(LOAD, "1000", **hub.environment())
    assert found["texts"] == [f"prompt number {i}" for i in range(1000)]
    assert all(COMMIT in r for r in hub.requests if "/resolve/" in r)
    assert [r for r in hub.requests if r.startswith("GET") and "README" in r] == []


def test_it_is_fetched_once(hub: Hub, python: Python) -> None:
    """The second run reads the cache, with a hub that is gone as well as offline, and gets the same sum."""
    first = python(LOAD, "3", **hub.environment())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hub.requests.clear()
    again = python(LOAD, "3", **hub.environment())
    gone = python(LOAD, "3", **hub.environment() | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
    offline = python(LOAD, "3", **hub.environment(HF_HUB_OFFLINE="1"))
    assert first == again == gone == offline
    assert [r for r in hub.requests if "/resolve/" in r] == []


def test_more_than_a_thousand_is_too_many(hub: Hub, python: Python) -> None:
    """The error has both numbers."""
    kind, code, text = python(LOAD, "1001", **hub.environment())
    assert (kind, code) == ("ConfigError", 10)
    assert "1001" in text
    assert "1000" in text


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        pytest.param("missing", "ModelNotFoundError", 13, id="404"),
        pytest.param("unauthorised", "ModelNotFoundError", 13, id="401"),
        pytest.param("gated", "ModelNotFoundError", 13, id="403 gated"),
        pytest.param("broken", "UnreachableError", 20, id="500"),
    ],
)
def test_a_refusal_names_the_dataset_and_the_way_out(
    answer: Any, kind: str, code: int, hub: Hub, python: Python
) -> None:
    """Class and exit code fit the status, and an unreachable hub names `-d builtin`."""
    hub.repos["datasets", REPO].answer = answer
    found = python(LOAD, "1", **hub.environment())
    assert found[:2] == [kind, code]
    assert "aienergyscore" in found[2]
    assert ("-d builtin" in found[2]) is (kind == "UnreachableError")
    if kind == "UnreachableError":  # asked once, not for 25 s
        assert len([r for r in hub.requests if REPO in r]) == 1


def test_no_network_names_the_builtin_set(python: Python) -> None:
    """Without a hub and without a cache the advice is the dataset that needs neither."""
    kind, code, text = python(LOAD, "1")
    assert (kind, code) == ("UnreachableError", 20)
    assert "-d builtin" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [("prompts.jsonl", b'{"prompt": "one"}\n{"prompt": "two"}\n'), ("prompts.csv", b"text\none\ntwo\n")],
    ids=["jsonl", "csv"],
)
def test_another_table_format_is_read_too(name: str, content: bytes, python: Python) -> None:
    """Should the repository hold JSON lines or CSV instead of Parquet, its prompts are found all the same."""
    with Hub() as hub:
        hub.add(REPO, {name: content}, kind="datasets", commit=COMMIT)
        assert python(LOAD, "2", **hub.environment())["texts"] == ["one", "two"]


def test_a_snapshot_without_a_table_says_so(python: Python) -> None:
    """A repository that lost its table is a sentence with the way out, not a crash."""
    with Hub() as hub:
        hub.add(REPO, {"README.md": b"moved"}, kind="datasets", commit=COMMIT)
        kind, _, text = python(LOAD, "1", **hub.environment())
    assert kind == "ConfigError"
    assert "-d builtin" in text
