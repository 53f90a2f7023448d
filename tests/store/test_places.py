"""Folders and stores as places: written once, compared by digest, asked again while it may help."""

import errno
import os
from pathlib import Path

import pytest

from llenergymeasure import store as files
from llenergymeasure.core.errors import ConfigError, ResultStoreError, UnreachableError
from llenergymeasure.object_store import Access, NotTakenError, Place, open_place, read_credentials
from llenergymeasure.waiting import MayPassError, Patience, RefusedError
from store.pods import Memory, Time

DOWN, REFUSED = MayPassError("connection refused"), RefusedError("403 Forbidden")


def place(memory: Memory) -> Place:
    """A place in a store that fails as told."""
    return Place("mem://bucket/run", memory)


def test_file_is_written_once(tmp_path: Path) -> None:
    """The same content again counts as stored; other content is refused by name, and the first stays."""
    run = open_place(f"file://{tmp_path}/with%20space", Access()).below("a1")

    first = run.put_new("result.json", b"one", Patience(0))
    again = run.put_new("result.json", b"one", Patience(0))
    with pytest.raises(ResultStoreError, match=r"a1/result\.json: holds other content.*nothing is overwritten"):
        run.put_new("result.json", b"two", Patience(0))

    assert first == again
    assert (first.size_bytes, first.uri) == (3, f"file://{tmp_path}/with%20space/a1/result.json")
    assert (tmp_path / "with space/a1/result.json").read_bytes() == b"one"
    assert os.listdir(tmp_path / "with space/a1") == ["result.json"]


def test_volume_without_hard_links_is_written_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some mounted volumes know no hard links: the name is taken first, then the complete file put in its place."""

    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)

    files.create_atomically(tmp_path / "x", b"one")
    with pytest.raises(FileExistsError):
        files.create_atomically(tmp_path / "x", b"two")

    assert (tmp_path / "x").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["x"]


def test_absent_file_is_none_and_names_are_relative(tmp_path: Path) -> None:
    """What is not there is no error; a listing names everything below, and only that."""
    study = open_place(str(tmp_path), Access())
    for name in ("study.json", "00000-aa-c1/a1/result.json", "00000-aa-c1x/a1/result.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")

    assert study.below("00000-aa-c1").get("a1/none.json", Patience(0)) is None
    assert study.below("00000-aa-c1").names(Patience(0)) == ["a1/result.json"]
    assert len(study.names(Patience(0))) == 3


def test_put_if_absent_says_who_was_first(tmp_path: Path) -> None:
    """The second writer of study.json loses without an error, whatever it holds."""
    study = open_place(str(tmp_path), Access())

    assert study.put_if_absent("study.json", b"mine", Patience(0)) is True
    assert study.put_if_absent("study.json", b"other", Patience(0)) is False
    assert (tmp_path / "study.json").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        pytest.param("ftp://host/x", "scheme ftp is unknown", id="unknown scheme"),
        pytest.param("s3:///x", "s3://BUCKET/PATH", id="no bucket"),
        pytest.param("s3://key:secret@bucket/x", "nothing else in it", id="credentials in the URI"),
        pytest.param("s3://bucket/a/../b", "without ..", id="dots in a bucket"),
        pytest.param("/data/../etc", "without ..", id="dots in a path"),
        pytest.param("", "an empty text", id="empty"),
    ],
)
def test_unusable_uri_is_a_configuration_error(uri: str, says: str) -> None:
    """A place that cannot be is named before anything is measured, without repeating secrets."""
    with pytest.raises(ConfigError, match=says) as err:
        open_place(uri, Access())

    assert "secret" not in str(err.value)


def test_failure_that_passes_costs_pauses_only() -> None:
    """A store that is down and comes back gets the file; pauses grow, vary, and are told with their reason."""
    memory, time, told = Memory(faults=[DOWN] * 6), Time(), []

    place(memory).put_new("x", b"1", Patience(900, time.clock, lambda s, why: told.append((s, why))))

    assert memory.files == {"x": b"1"}
    assert [why for _, why in told] == ["connection refused"] * 6
    assert 0 < time.passed_s < 60
    assert len({round(s, 3) for s, _ in told}) > 1


def test_store_that_stays_down_ends_the_patience() -> None:
    """Tried until the very end of the budget, not longer, and called a store's failure."""
    memory, time = Memory(always=DOWN), Time()

    with pytest.raises(NotTakenError, match=r"mem://bucket/run/x: could not be stored in the time given"):
        place(memory).put_new("x", b"1", Patience(900, time.clock))

    assert time.passed_s == pytest.approx(900)
    assert memory.asked > 20


def test_budget_is_shared_by_all_files() -> None:
    """Five files do not wait five times the budget."""
    memory, time = Memory(always=DOWN), Time()
    patience = Patience(900, time.clock)

    for name in ("a", "b"):
        with pytest.raises(NotTakenError):
            place(memory).put_new(name, b"1", patience)

    assert time.passed_s == pytest.approx(900)


def test_refusal_is_believed_after_half_a_minute() -> None:
    """Wrong credentials end soon, not after the whole budget; a refusal that passes (new keys) costs nothing."""
    time = Time()
    with pytest.raises(ResultStoreError, match="403 Forbidden"):
        place(Memory(always=REFUSED)).put_new("x", b"1", Patience(900, time.clock))
    assert time.passed_s == pytest.approx(30)

    place(Memory(faults=[REFUSED, REFUSED])).put_new("x", b"1", Patience(900, Time().clock))


def test_refusal_counts_from_its_first_time() -> None:
    """A long outage before does not make the first refusal final."""
    memory, time = Memory(faults=[DOWN] * 12 + [REFUSED]), Time()

    place(memory).put_new("x", b"1", Patience(900, time.clock))

    assert memory.files == {"x": b"1"}


def test_lost_answer_is_no_second_file() -> None:
    """A write whose answer got lost finds its own bytes when repeated."""
    memory = Memory()

    class LosesAnswers(Memory):
        def create(self, name: str, content: bytes) -> None:
            memory.create(name, content)
            raise DOWN

        def read(self, name: str) -> bytes:
            return memory.read(name)

    stored = place(LosesAnswers()).put_new("x", b"1", Patience(900, Time().clock))

    assert stored.size_bytes == 1


def test_name_taken_by_a_write_under_way_is_asked_again() -> None:
    """A store may answer "taken" before the other write can be read."""
    memory = Memory(files={"x": b"1"}, faults=[None, FileNotFoundError("x")])

    place(memory).put_new("x", b"1", Patience(900, Time().clock))

    assert memory.asked == 4


def test_reading_from_a_store_that_is_down_is_unreachable() -> None:
    """Not knowing whether a result is there is not the same as none."""
    with pytest.raises(UnreachableError, match="does not answer"):
        place(Memory(always=DOWN)).get("x", Patience(60, Time().clock))


def test_someone_in_a_hurry_waits_no_longer() -> None:
    """After SIGTERM what is left of the budget is seconds, and a pause under way ends."""
    memory, time = Memory(always=DOWN), Time()
    patience = Patience(900, time.clock)
    time.at[100.0] = lambda: patience.hurry(20)

    with pytest.raises(NotTakenError):
        place(memory).put_new("x", b"1", patience)

    assert 119 < time.passed_s < 122
    assert patience.hurried


def test_folder_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    """A file where a folder should be is refused by name; a full disk may be emptied."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ResultStoreError, match=r"file/a1/x: cannot be stored: Not a directory"):
        open_place(str(tmp_path / "file"), Access()).below("a1").put_new("x", b"", Patience(0))


def test_full_volume_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC ends when someone makes room: the write is tried again and leaves no half file."""
    create, times = files.create_atomically, []

    def full_at_first(path: Path, content: bytes) -> None:
        times.append(path)
        if len(times) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        create(path, content)

    monkeypatch.setattr("llenergymeasure.object_store.create_atomically", full_at_first)

    open_place(str(tmp_path), Access()).put_new("x", b"1", Patience(900, Time().clock))

    assert (len(times), (tmp_path / "x").read_bytes()) == (3, b"1")


def test_credentials_are_read_anew_and_never_shown(tmp_path: Path) -> None:
    """Keys come from files as a Secret mounts them; a missing one is named, no value is."""
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("id\n")
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY"):
        read_credentials(tmp_path)

    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("first\n")
    before = read_credentials(tmp_path)
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("second")
    (tmp_path / "AWS_SESSION_TOKEN").write_text("token")

    assert (before["access_key_id"], before["secret_access_key"], before["token"]) == ("id", "first", None)
    assert read_credentials(tmp_path)["secret_access_key"] == "second"
    assert read_credentials(tmp_path)["token"] == "token"
    assert "second" not in repr(open_place("s3://bucket/x", Access("http://127.0.0.1:9", None, tmp_path)))
