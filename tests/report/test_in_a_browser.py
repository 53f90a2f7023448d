"""The page in headless Chromium: narrow and wide, light and dark, offline, on paper; its CSV comes down whole."""

import csv
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.process import wait_until
from llenergymeasure.html_report import write_report
from report.browser import Browser, chromium
from report.studies import HOSTILE, UNICODE, no_energy, read, study_config, written

pytestmark = pytest.mark.browser
WIDTHS = [390, 1280]
BETWEEN = [768, 1000]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    downloads = tmp_path_factory.mktemp("downloads")
    with chromium(downloads) as found:
        found.downloads = downloads  # type: ignore[attr-defined]
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of studies of every kind."""
    folder = tmp_path_factory.mktemp("pages")
    names = (HOSTILE, UNICODE, "x" * 180, "m" * 60 + " " + "n" * 60)
    studies = {
        "usual": [read(written(folder / "usual", study_config(12, 3)))],
        "many": [read(written(folder / "many", study_config(100, 2), series=False))],
        "no energy": [read(written(folder / "plain", study_config(4, 1), change=no_energy))],
        "hostile": [read(written(folder / "hostile", study_config(4, 2, name=HOSTILE, models=names)))],
        "nothing": [read(written(folder / "nothing", study_config(2, 2), change=lambda _p, _c: None))],
    }
    studies["merged"] = [*studies["usual"], *studies["hostile"]]
    for name, rebuilt in studies.items():
        write_report(folder / f"{name}.html", rebuilt)
    return {name: folder / f"{name}.html" for name in studies}


KINDS = ["usual", "many", "no energy", "hostile", "nothing", "merged"]


@pytest.mark.parametrize("width", [*WIDTHS, *BETWEEN])
@pytest.mark.parametrize("kind", KINDS)
def test_page_fits_its_screen_asks_for_nothing_and_has_no_complaints(
    kind: str, width: int, browser: Browser, pages: dict[str, Path]
) -> None:
    """No scrolling sideways, no request but the file itself, nothing in the console; also with everything unfolded."""
    browser.show(pages[kind], width=width)
    browser.script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.overflow_px() <= 0
    assert browser.requests() == [pages[kind].as_uri()]
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["usual", "no energy", "hostile"])
def test_every_text_can_be_read(kind: str, width: int, scheme: str, browser: Browser, pages: dict[str, Path]) -> None:
    """Contrast of 4.5 and more in both schemes, in pictures as well, and no text smaller than 9 px."""
    browser.show(pages[kind], width=width, scheme=scheme)
    texts = browser.texts()
    assert len(texts) > 40
    assert [t for t in texts if t.contrast < 4.5] == []
    assert [t for t in texts if t.size_px < 9] == []


def test_pictures_and_page_follow_the_scheme(browser: Browser, pages: dict[str, Path]) -> None:
    """Dark is dark: paper, text and every text in a picture change."""
    seen = {}
    for scheme in ("light", "dark"):
        browser.show(pages["usual"], width=1280, scheme=scheme)
        seen[scheme] = browser.texts()
    light, dark = seen["light"], seen["dark"]
    assert [t.words for t in light] == [t.words for t in dark]
    assert all(a.colour != b.colour and a.behind != b.behind for a, b in zip(light, dark, strict=True))
    assert sum(light[0].behind) > 600
    assert sum(dark[0].behind) < 200


def test_csv_comes_down_with_a_row_per_run(browser: Browser, pages: dict[str, Path]) -> None:
    """A click on the link saves a file that a CSV reader understands; the page needs no server for it."""
    downloads: Path = browser.downloads  # type: ignore[attr-defined]
    browser.show(pages["usual"], width=1280)
    browser.click("a[download]")
    (saved,) = wait_until(lambda: [p for p in downloads.iterdir() if p.suffix == ".csv"])
    with saved.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    assert {row["status"] for row in rows} == {"completed"}
    assert browser.complaints() == []


def test_page_prints_on_a4_with_everything_unfolded(browser: Browser, pages: dict[str, Path]) -> None:
    """Paper has A4 pages, light colours whatever the screen, and the traces that the screen folds away."""
    browser.show(pages["usual"], width=1280, scheme="dark")
    pdf = browser.pdf()
    sizes = {
        tuple(round(float(n)) for n in found) for found in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    }
    assert sizes == {(595, 842)}
    streams = [_inflated(s) for s in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)]
    shaded = sum(len(re.findall(rb"\.937\d* \.929\d* \.902\d* rg", s)) for s in streams)
    assert shaded >= 36  # the window of every run's trace, in the light scheme's colour


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""
