"""Models from a hub, on a stand-in on loopback: right revision, one download, and advice for every refusal."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.hub import Hub

FILES = {
    "config.json": b'{"hidden_size": 8}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights again",
    "README.md": b"# words",
    "original/consolidated.00.pth": b"and again",
}
OLD, NEW = "a" * 40, "b" * 40

CHECK = """
import json, sys
from llenergymeasure import models
from llenergymeasure.core.errors import run_exit_code
problems = models.check(sys.argv[1], sys.argv[2] or None)
print(json.dumps([[type(p).__name__, run_exit_code(p), str(p)] for p in problems]))
"""
RESOLVE = """
import json, sys
from pathlib import Path
from llenergymeasure import models
from llenergymeasure.core.errors import LLEMError, run_exit_code
try:
    w = models.resolve(sys.argv[1], sys.argv[2] or None, cache=Path("unused"))
    files = sorted(str(p.relative_to(w.path)) for p in w.path.rglob("*") if p.is_file())
    print(json.dumps({"source": w.source, "revision": w.revision, "config": dict(w.config), "files": files}))
except LLEMError as err:
    print(json.dumps([type(err).__name__, run_exit_code(err), str(err)]))
"""
CONFIG = """
import json, sys
from pathlib import Path
from llenergymeasure import models
print(json.dumps(models.local_config(sys.argv[1], sys.argv[2] or None, cache=Path("unused"))))
"""
Python = Callable[..., Any]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with one model in two revisions, and one model per refusal."""
    with Hub() as server:
        server.add("acme/tiny", FILES, commit=NEW, tags={"v1": OLD})
        server.add("acme/bins", {k: v for k, v in FILES.items() if not k.endswith(".safetensors")})
        server.add("acme/gated", FILES, answer="gated")
        server.add("acme/private", FILES, answer="unauthorised")
        server.add("acme/forbidden", FILES, answer="forbidden")
        server.add("acme/broken", FILES, answer="broken")
        server.add("acme/secret", FILES, token="hf_right")
        yield server


def _closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("revision", "commit"),
    [pytest.param("", NEW, id="unset"), pytest.param("v1", OLD, id="tag"), pytest.param(OLD, OLD, id="commit")],
)
def test_the_resolved_commit_is_recorded(revision: str, commit: str, hub: Hub, python: Python) -> None:
    """Whatever the user writes, the result knows the commit; only files that a run needs are fetched."""
    found = python(RESOLVE, "acme/tiny", revision, **hub.environment())
    assert found == {
        "source": "hub",
        "revision": commit,
        "config": {"hidden_size": 8},
        "files": ["config.json", "model.safetensors", "tokenizer.json"],
    }


def test_weights_without_safetensors_are_fetched_as_they_are(hub: Hub, python: Python) -> None:
    """An older repository, which has only .bin files, gives those."""
    assert "pytorch_model.bin" in python(RESOLVE, "acme/bins", "", **hub.environment())["files"]


def test_a_second_run_downloads_nothing(hub: Hub, python: Python) -> None:
    """Files are fetched once; the second run only asks which commit is current."""
    python(RESOLVE, "acme/tiny", "", **hub.environment())
    hub.requests.clear()
    assert python(RESOLVE, "acme/tiny", "", **hub.environment())["revision"] == NEW
    assert [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r] == []


@pytest.mark.parametrize(
    ("model", "revision"),
    [("acme/tiny", ""), ("acme/tiny", "v1"), ("acme/tiny", OLD), ("acme/bins", "")],
    ids=["default branch", "tag", "commit", "bin files"],
)
def test_a_cached_model_runs_without_a_network(model: str, revision: str, hub: Hub, python: Python) -> None:
    """Once fetched, a hub that is gone, broken or forbidden by HF_HUB_OFFLINE is no obstacle."""
    first = python(RESOLVE, model, revision, **hub.environment())
    gone = python(RESOLVE, model, revision, **hub.environment() | {"HF_ENDPOINT": _closed_port()})
    offline = python(RESOLVE, model, revision, **hub.environment(HF_HUB_OFFLINE="1"))
    hub.answer = "broken"
    broken = python(RESOLVE, model, revision, **hub.environment())
    assert first["source"] == "hub"
    assert first == gone == offline == broken


REFUSALS = [
    pytest.param("acme/none", "", "check the spelling", id="404"),
    pytest.param("acme/tiny", "v9", "not found in that revision", id="revision"),
    pytest.param("acme/private", "", "set HF_TOKEN", id="401"),
    pytest.param("acme/gated", "", "accept its terms", id="403 gated"),
    pytest.param("acme/forbidden", "", "check HF_TOKEN", id="403"),
    pytest.param("not a name!", "", "owner/name", id="impossible name"),
]


@pytest.mark.parametrize(("model", "revision", "advice"), REFUSALS)
@pytest.mark.parametrize("script", [CHECK, RESOLVE], ids=["pre-flight", "download"])
def test_a_refusal_becomes_an_error_with_advice(
    script: str, model: str, revision: str, advice: str, hub: Hub, python: Python
) -> None:
    """Pre-flight and download agree on the class, the exit code and what to do."""
    found = python(script, model, revision, **hub.environment())
    error = found[0] if script is CHECK else found
    assert error[:2] == ["ModelNotFoundError", 13]
    assert advice in error[2]
    assert model in error[2]


def test_a_refused_token_is_not_asked_for_again(hub: Hub, python: Python) -> None:
    """With a token set, the advice is to check it, not to set one; the token itself is never repeated."""
    found = python(RESOLVE, "acme/secret", "", **hub.environment(HF_TOKEN="hf_wrong"))
    assert "check HF_TOKEN" in found[2]
    assert "hf_wrong" not in found[2]
    assert python(RESOLVE, "acme/secret", "", **hub.environment(HF_TOKEN="hf_right"))["source"] == "hub"


def test_a_broken_hub_is_unreachable_and_may_be_tried_again(hub: Hub, python: Python) -> None:
    """A 500 has the exit code for trying later, names the status, and points at the model that needs no network."""
    kind, code, text = python(RESOLVE, "acme/broken", "", **hub.environment())
    assert (kind, code) == ("UnreachableError", 20)
    assert "500" in text
    assert "builtin:smollm2-135m" in text


def test_no_network_does_not_block_the_check_but_the_download(hub: Hub, python: Python) -> None:
    """Pre-flight lets an unreachable hub pass, since the files may be cached; the download then says so."""
    nowhere = hub.environment() | {"HF_ENDPOINT": _closed_port()}
    assert python(CHECK, "acme/tiny", "", **nowhere) == []
    kind, code, text = python(RESOLVE, "acme/tiny", "", **nowhere)
    assert (kind, code) == ("UnreachableError", 20)
    assert "builtin:smollm2-135m" in text


def test_offline_without_a_cache_is_unreachable(hub: Hub, python: Python) -> None:
    """A machine set offline asks nothing and says what is missing."""
    offline = hub.environment(HF_HUB_OFFLINE="1")
    assert python(CHECK, "acme/tiny", "", **offline) == []
    assert python(RESOLVE, "acme/tiny", "", **offline)[:2] == ["UnreachableError", 20]
    assert [r for r in hub.requests if "acme" in r] == []


def test_an_estimate_asks_for_one_small_file(hub: Hub, python: Python) -> None:
    """The memory estimate fetches config.json and nothing else, of the right revision."""
    assert python(CONFIG, "acme/tiny", "v1", **hub.environment()) == {"hidden_size": 8}
    assert [r for r in hub.requests if "acme" in r] == ["GET /acme/tiny/resolve/v1/config.json"]


@pytest.mark.parametrize("model", ["acme/none", "acme/gated", "acme/broken"])
def test_an_estimate_that_cannot_be_had_is_silent(model: str, hub: Hub, python: Python) -> None:
    """No config, no estimate, no error: the run itself reports why."""
    assert python(CONFIG, model, "", **hub.environment()) == {}


def test_without_huggingface_hub_the_extra_is_named(python: Python) -> None:
    """Downloading needs a library that comes with the pytorch extra."""
    code = "import sys; sys.modules['huggingface_hub'] = None\n" + RESOLVE
    kind, exit_code, text = python(code, "acme/tiny", "")
    assert (kind, exit_code) == ("BackendMissingError", 12)
    assert "llenergymeasure[pytorch]" in text
