"""What a bucket's server may answer, over real HTTP: which answers pass, which are final, in words of a few."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from llenergymeasure import object_store
from llenergymeasure.core.errors import ResultStoreError
from llenergymeasure.object_store import Access, NotTakenError, Place, open_place
from llenergymeasure.waiting import Patience
from store.pods import Time

KEY, SECRET = "key-of-the-test", "secret-of-the-test"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request with one status, or not at all."""

    status: ClassVar[int] = 200
    silent: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.status == 0:
            self.silent.wait(10)
            return
        body = f"<Error><Code>Code{self.status}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """Answer likewise."""
        self.do_GET()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def access(tmp_path: Path) -> Iterator[Access]:
    """A server that answers as `Answers.status` says."""
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text(KEY)
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text(SECRET)
    Answers.silent.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Access(f"http://127.0.0.1:{server.server_port}", None, tmp_path)
        Answers.silent.set()
        server.shutdown()


@pytest.fixture
def place(access: Access) -> Place:
    """A bucket there."""
    return open_place("s3://bucket/run", access)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param(301, "another region", id="wrong region"),
        pytest.param(400, r"400 Bad Request \(Code400\)", id="bad request"),
        pytest.param(401, r"401 Unauthorized \(Code401\); check the credentials", id="not known"),
        pytest.param(403, r"403 Forbidden \(Code403\); check the credentials", id="not allowed"),
        pytest.param(404, "no such bucket", id="no bucket"),
        pytest.param(405, "405 Method Not Allowed", id="no store at all"),
    ],
)
def test_refusal_is_final_after_half_a_minute(place: Place, status: int, says: str) -> None:
    """The server's own code is in the message, nothing of the request or its keys."""
    Answers.status, time = status, Time()

    with pytest.raises(ResultStoreError, match=says) as err:
        place.put_new("x", b"1", Patience(900, time.clock))

    assert not isinstance(err.value, NotTakenError)
    assert time.passed_s == pytest.approx(30)
    assert not any(secret in str(err.value) for secret in (KEY, SECRET, "uri:", "\n"))


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param(408, "408 Request Timeout", id="timeout"),
        pytest.param(409, "409 Conflict|under way", id="another write under way"),
        pytest.param(429, "429 Too Many Requests", id="too many requests"),
        pytest.param(500, "500 Internal Server Error", id="internal error"),
        pytest.param(503, "503 Service Unavailable", id="overloaded"),
        pytest.param(507, "507 Insufficient Storage", id="full"),
    ],
)
def test_trouble_that_may_pass_is_waited_for(place: Place, status: int, says: str) -> None:
    """For the whole budget, and then named."""
    Answers.status, time = status, Time()

    with pytest.raises(NotTakenError, match=says):
        place.put_new("x", b"1", Patience(100, time.clock))

    assert time.passed_s == pytest.approx(100)


def test_server_that_never_answers_is_given_up(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled connection ends after its time and counts as trouble that may pass."""
    monkeypatch.setattr(object_store, "REQUEST_S", 1)
    Answers.status = 0

    with pytest.raises(NotTakenError, match="could not be stored in the time given"):
        open_place("s3://bucket/run", access).put_new("x", b"1", Patience(0.5))
