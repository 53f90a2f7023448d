"""Takes the README's picture of a report: runs a study of this repository, writes its page, photographs its top.

    python tools/report_screenshot.py [EXAMPLE or folder of a finished study] [--height PIXELS]

Needs the extra `report`, Chromium and its driver (tools/browser.py). Without an example it is examples/simulated.yaml,
whose pretended engine and sensor the page itself announces.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "report.png"
LARGEST_BYTES = 300_000
sys.path.insert(0, str(ROOT / "tests"))


def page_of(example: Path, folder: Path) -> Path:
    """Run the study, unless it is the folder of one, and write its page; gives the page's path."""
    llem, study = Path(sys.executable).with_name("llem"), example
    if not example.is_dir():
        subprocess.run([llem, "run", example, "-o", folder / "results"], cwd=folder, check=True)
        (study,) = (folder / "results").iterdir()
    page = folder / "report.html"
    subprocess.run([llem, "report", study, "-o", page], cwd=folder, check=True)
    return page


def photograph(page: Path, height: int) -> bytes:
    """PNG of the page's first `height` pixels on a wide light screen."""
    from report.browser import chromium

    with chromium(page.parent) as browser:
        browser.show(page, width=1120)
        return browser.screenshot(height=height)


def main() -> None:
    """Write docs/images/report.png; fails if it is too large for a README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", nargs="?", type=Path, default=ROOT / "examples" / "simulated.yaml")
    parser.add_argument("--height", type=int, default=945)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = photograph(page_of(words.example.resolve(), Path(folder)), words.height)
    if len(picture) > LARGEST_BYTES:
        sys.exit(f"{len(picture)} bytes are more than {LARGEST_BYTES}: take a smaller --height")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(picture)
    print(f"{PICTURE.relative_to(ROOT)}: {len(picture)} bytes")


if __name__ == "__main__":
    main()
