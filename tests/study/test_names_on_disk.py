"""Folders of results: always a new one, named after what was run, and never outside the output folder."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.process import FAST, llem, over, tree, write
from llenergymeasure import ExperimentConfig, run_experiment, run_study, store
from llenergymeasure.core.errors import ResultStoreError
from study.running import make

NOON = datetime(2026, 3, 29, 12, 0, 5, tzinfo=UTC)
HOSTILE = [
    "../../etc/passwd", "..", ".", "/", "///", "", "a/../../b", "..\\..\\windows", "/absolute/path", "~root", "$(id)",
    "`id`", "a;rm -rf b", "name with spaces", "tab\tnew\nline", "nul\0byte", "Ünïcödé/模型", "模型", "🔥", "-rf",
    "--flag", ".hidden", "x" * 500, "UPPER/Case", "builtin:smollm2-135m", "c:con", "a%2e%2e%2fb", "\u202etxt",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(n)[:30] for n in HOSTILE])
def test_slug_is_one_harmless_path_part(name: str) -> None:
    """Whatever a configuration calls itself, its folder is one short part of plain characters."""
    found = store.slug(name)

    assert found
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert found not in (".", "..")
    assert found[0] not in "-."
    assert len(found) <= store.MAX_SLUG


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("/data/models/My Model/", "my-model"),
        ("builtin:smollm2-135m", "smollm2-135m"),
        ("../..", "run"),
        ("模型", "run"),
    ],
)
def test_slug_is_the_last_part_in_lower_case(name: str, expected: str) -> None:
    """A hub id or a path is named after its last part; what leaves nothing is called run."""
    assert store.slug(name) == expected


@pytest.mark.parametrize("name", HOSTILE[:20], ids=[ascii(n)[:30] for n in HOSTILE[:20]])
def test_new_folder_lies_in_its_parent(tmp_path: Path, name: str) -> None:
    """The folder that is made is a direct child of the output folder."""
    parent = tmp_path / "out"

    folder = store.new_folder(parent, name, NOON)

    assert folder.resolve().parent == parent.resolve()
    assert folder.name.endswith("_20260329T120005Z")
    assert tree(tmp_path) == {"out", f"out/{folder.name}"}


def test_taken_names_are_counted_up(tmp_path: Path) -> None:
    """A second run in the same second gets _1, the third _2; a file or a dangling link counts as taken."""
    (tmp_path / "m_20260329T120005Z_1").write_text("a file")
    (tmp_path / "m_20260329T120005Z_3").symlink_to(tmp_path / "nowhere")

    names = [store.new_folder(tmp_path, "m", NOON).name for _ in range(3)]

    assert names == ["m_20260329T120005Z", "m_20260329T120005Z_2", "m_20260329T120005Z_4"]
    assert not (tmp_path / "nowhere").exists()


def test_concurrent_runs_never_share_a_folder(tmp_path: Path) -> None:
    """mkdir is the lock: sixteen at once get sixteen folders."""
    barrier, made = threading.Barrier(16), []

    def take() -> None:
        barrier.wait()
        made.append(store.new_folder(tmp_path, "m", NOON))

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(made)) == 16


@pytest.mark.parametrize("name", ["../../outside", "/etc", "sub/dir", "..", "模型"], ids=ascii)
def test_study_with_a_hostile_name_stays_inside(tmp_path: Path, name: str) -> None:
    """A study's name and a model's name are only ever one part of the path."""
    study = make({"name": name, "sweep": {"model": [name]}})

    result = run_study(study, output_dir=tmp_path / "a" / "out")

    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"out"}
    assert Path(result.directory or "").parent == tmp_path / "a" / "out"
    assert (Path(result.directory or "") / result.result_files[0]).exists()


def test_link_in_place_of_a_runs_folder_is_not_followed_out(tmp_path: Path) -> None:
    """A result is written where its folder is; a file of the same name elsewhere is not touched by the rename."""
    outside = tmp_path / "precious.json"
    outside.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").symlink_to(outside)

    store.save_run(folder, {"result.json": b"new"})

    assert outside.read_text() == "precious"
    assert not (folder / "result.json").is_symlink()
    assert (folder / "result.json").read_bytes() == b"new"


def test_earlier_results_are_never_overwritten(tmp_path: Path) -> None:
    """Two runs of the same experiment leave two results."""
    config = ExperimentConfig(**over(FAST))

    a, b = (run_experiment(config, output_dir=tmp_path) for _ in range(2))

    stored = sorted(tmp_path.glob("*/result.json"))
    assert len(stored) == 2
    assert {store_id(p) for p in stored} == {a.experiment_id, b.experiment_id}


def store_id(path: Path) -> str:
    """The id in a stored result."""
    from llenergymeasure import ExperimentResult

    return ExperimentResult.from_json(path).experiment_id


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    """A write that cannot be finished leaves what was there, and no temporary file."""
    target = tmp_path / "taken"
    target.mkdir()
    (target / "inside").write_text("old")

    with pytest.raises(ResultStoreError, match="taken"):
        store.write_atomically(target, b"new")

    assert tree(tmp_path) == {"taken", "taken/inside"}


def test_result_is_written_last(tmp_path: Path, fast: ExperimentConfig) -> None:
    """Where result.json is, the rest of the run is, too."""
    from llenergymeasure.measure import measure
    from llenergymeasure.user_config import UserConfig

    measured = measure(fast, UserConfig())

    names = list(store.files_of(measured.result, measured.series, measured.raw))

    assert names[-1] == "result.json"
    assert set(names[:-1]) == {"config.json", "environment.json", "timeseries.parquet"}


@pytest.mark.parametrize("uri", ["s3://bucket/a", "https://host/a", "ftp://x"])
def test_unknown_stores_are_refused_by_name(uri: str) -> None:
    """Only folders and file:// URIs; anything else is refused before it could become a folder called s3:."""
    with pytest.raises(ResultStoreError, match=uri):
        store.folder_of_uri(uri)


def test_results_go_below_the_output_folder(tmp_path: Path) -> None:
    """-o names the parent, made if missing; a second run lies beside the first."""
    file = write(tmp_path)

    for _ in range(2):
        llem("run", file, "-o", "deep/er", cwd=tmp_path)

    folders = list((tmp_path / "deep" / "er").iterdir())
    assert len(folders) == 2
    assert all((f / "result.json").exists() for f in folders)
    assert not (tmp_path / "results").exists()
