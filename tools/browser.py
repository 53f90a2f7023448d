"""Sees to it that Chromium and its driver are here, for the tests that look at reports: `python tools/browser.py`.

Installs Debian's packages where that is possible (root, apt-get); says what to do where it is not. Exits 0 either way:
the tests themselves fail with the same advice if there is no browser.
"""

import os
import shutil
import subprocess
import sys

PACKAGES = ("chromium", "chromium-driver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def installed() -> bool:
    """Whether a browser and its driver can be started by name."""
    return any(map(shutil.which, BROWSERS)) and shutil.which("chromedriver") is not None


def install() -> str | None:
    """Install them; gives the reason if that did not work."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get here"
    if os.geteuid() != 0:
        return "only root can install packages"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-q", *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"apt-get {words[0]} failed: {done.stderr.strip()[-500:]}"
    return None if installed() else "the packages brought no chromium or no chromedriver"


def main() -> None:
    """Install what is missing, or say so."""
    if installed():
        return
    print(f"installing {' and '.join(PACKAGES)} for the tests that look at reports", flush=True)
    reason = install()
    if reason is not None:
        print(f"no browser for the tests marked `browser`: {reason}; install {', '.join(PACKAGES)}", file=sys.stderr)


if __name__ == "__main__":
    main()
