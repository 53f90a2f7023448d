"""Headless Chromium, driven by its own driver: what a page looks like, loads, says and prints."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

NEEDED = "needs chromium and chromedriver: apt-get install chromium chromium-driver (as root: python tools/browser.py)"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Everything that shows text, with the colour behind it: of itself, or of the nearest ancestor that has one.
_COLOURS = """
const shown = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.getClientRects().length || ['title', 'desc', 'style'].includes(element.tagName.toLowerCase())) continue;
  const style = getComputedStyle(element);
  let behind = element;
  while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  shown.push([element.closest('svg') ? style.fill : style.color,
              behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)',
              parseFloat(style.fontSize) * (element.getScreenCTM ? Math.hypot(element.getScreenCTM().a, element.getScreenCTM().b) : 1),
              element.textContent.trim().slice(0, 40)]);
}
return shown;
"""


@dataclass(frozen=True)
class Text:
    """A piece of text as drawn: colours as red, green, blue of 255; size in CSS pixels."""

    colour: tuple[float, ...]
    behind: tuple[float, ...]
    size_px: float
    words: str

    @property
    def contrast(self) -> float:
        """Contrast ratio (WCAG 2.2, section 1.4.3)."""
        high, low = sorted((_luminance(self.colour), _luminance(self.behind)), reverse=True)
        return (high + 0.05) / (low + 0.05)


def _luminance(colour: tuple[float, ...]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@contextmanager
def chromium(downloads: Path) -> Iterator["Browser"]:
    """A browser that saves into `downloads` and notes every request."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    assert binary is not None, NEEDED
    assert driver is not None, NEEDED
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        behaviour = {"behavior": "allow", "downloadPath": str(downloads), "eventsEnabled": True}
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        yield Browser(chrome)
    finally:
        chrome.quit()


class Browser:
    """One tab."""

    def __init__(self, chrome: "Chrome") -> None:
        self._chrome = chrome

    def show(self, path: Path, *, width: int, scheme: str = "light") -> None:
        """Open a file on a screen of that width, in that colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._cdp("Emulation.setEmulatedMedia", features=features)
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        self._cdp("Emulation.setDeviceMetricsOverride", **screen)
        self._chrome.get("about:blank")
        for kind in ("browser", "performance"):
            self._chrome.get_log(kind)  # what came before is not of this page
        self._chrome.get(path.as_uri())

    def script(self, text: str, *arguments: object) -> Any:
        """The value of a function's body, run in the page by the driver (the page itself may have no scripts)."""
        return self._chrome.execute_script(text, *arguments)

    def click(self, css: str) -> None:
        """Click the first element that matches."""
        self._chrome.find_element("css selector", css).click()

    def complaints(self) -> list[str]:
        """What stands in the console."""
        return [entry["message"] for entry in self._chrome.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since `show`, without what is inside it."""
        messages = [json.loads(entry["message"])["message"] for entry in self._chrome.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def texts(self) -> list[Text]:
        """Every visible text with its colours and its size."""
        found = self.script(_COLOURS)
        return [Text(_rgb(colour), _rgb(behind), size, words) for colour, behind, size, words in found]

    def overflow_px(self) -> int:
        """By how much the page is wider than its window."""
        return int(self.script("const e = document.documentElement; return e.scrollWidth - e.clientWidth"))

    def screenshot(self, *, height: int | None = None) -> bytes:
        """PNG of the whole page, or of its first `height` pixels."""
        width, full = self.script("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(full, height or full), "scale": 1}
        return self._bytes("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)

    def pdf(self) -> bytes:
        """The page as printed."""
        self._cdp("Emulation.clearDeviceMetricsOverride")
        return self._bytes("Page.printToPDF", preferCSSPageSize=True)

    def _bytes(self, command: str, **parameters: Any) -> bytes:
        return base64.b64decode(self._cdp(command, **parameters)["data"])

    def _cdp(self, command: str, **parameters: Any) -> Any:
        return self._chrome.execute_cdp_cmd(command, parameters)


def _rgb(css: str) -> tuple[float, ...]:
    return tuple(float(n) for n in re.findall(r"[\d.]+", css)[:3])
