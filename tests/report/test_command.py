"""`llem report DIR…` as people call it: one table over several studies, the page beside it."""

from pathlib import Path

from cli.process import llem
from report.pages import downloaded, parsed, ranking
from report.studies import HOSTILE, no_energy, read, study_config, written


def test_several_folders_give_one_table_and_one_page(tmp_path: Path) -> None:
    """The best of all studies in one sentence, a column that names the study, and the page where -o says."""
    written(tmp_path / "first", study_config(2, 3, name="first"))
    written(tmp_path / "second", study_config(3, 2, name="second"))
    ended = llem("report", "first", "second", "-o", "page.html", cwd=tmp_path)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].split() == ["configuration", "study", "tokens/s", "rel.", "speed", "batch", "p50", "(ms)", "J/token", "verdict"]  # fmt: skip
    assert [line.split()[2] for line in lines[2:7]] == ["second", "first", "first", "second", "second"]
    assert "best: synthetic batch_size=1, 0.4 ± 0.01 J per output token" in ended.out
    assert "first: 6 of 6 runs completed, 0 failed, 0 combinations skipped" in lines
    assert lines[-1] == "report: page.html"
    page = parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(ranking(page)) == 5
    assert len(downloaded(page)[1]) == 12


def test_one_folder_keeps_its_table(tmp_path: Path) -> None:
    """One study has no column for its name; the fastest one is named without energy."""
    written(tmp_path / "s", study_config(2, 1, name=HOSTILE), change=no_energy)
    ended = llem("report", "s", "--html", "r.html", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "study" not in ended.out.splitlines()[0]
    assert "fastest: synthetic batch_size=1, 1000 output tokens/s" in ended.out
    assert (tmp_path / "r.html").exists()


def test_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A folder that is not there is named, and the table is printed all the same."""
    written(tmp_path / "s", study_config(1, 1))
    (tmp_path / "file").write_text("", encoding="utf-8")
    ended = llem("report", "s", "-o", "file/page.html", cwd=tmp_path)
    assert ended.code != 0
    assert "synthetic" in ended.out
    assert len(ended.errors) == 1
    assert "page.html" in ended.errors[0]


def test_study_read_back_is_the_one_that_was_written(tmp_path: Path) -> None:
    """The folders of these tests are what `llem report` takes for a finished study."""
    rebuilt = read(written(tmp_path / "s", study_config(2, 2)))
    assert rebuilt.manifest.status == "completed"
    assert rebuilt.study.summary["ran"] == 4
