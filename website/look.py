"""Look at every page of the built site in Chromium, at the width of a desk and of a phone: ``make docs-look``.

``look.py SITE PICTURES``; runs on Debian's Python with python3-selenium and chromium-driver.  Each page is opened from
a server of our own on loopback.  Wrong are: a page that is wider than the screen, a picture that is not there, a
message on the console, anything that is asked of another host, a search that finds nothing (in files, too).
"""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

WIDTHS = {"desk": 1280, "phone": 390}
HEIGHT = 900
LONGEST = 12000  # pixels of a picture
MISSING = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
# What sticks out of the page by itself; what scrolls within a box of its own does not.
WIDE = """
const room = document.documentElement.clientWidth
return document.documentElement.scrollWidth <= room ? [] :
    [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > room + 1)
        .slice(0, 3).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 60)).concat('wider than the screen')
"""
FOUND = "return document.querySelectorAll('.md-search-result__item').length"
ASK = """
const box = document.querySelector('.md-search__input')
const toggle = document.getElementById('__search')
toggle.checked = true
toggle.dispatchEvent(new Event('change', {bubbles: true}))
box.focus(); box.value = arguments[0]
for (const name of ['input', 'keyup']) box.dispatchEvent(new Event(name, {bubbles: true}))
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a server of *site* on loopback."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    # no sandbox: it does not start as root, and the pages are ours
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.binary_location = "/usr/bin/chromium"
    driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
    try:
        yield driver
    finally:
        driver.quit()


def set_size(driver: Any, width: int, height: int) -> None:
    """The size of the page's own area; a window is never narrower than 500."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})


def wrong_with(driver: Any, own: str) -> list[str]:
    """What is wrong with the page that is open."""
    found = [f"sticks out: {what}" for what in driver.execute_script(WIDE)]
    found += [f"picture is missing: {address}" for address in driver.execute_script(MISSING)]
    found += [f"console: {line['message']}" for line in driver.get_log("browser")]
    for line in driver.get_log("performance"):
        message = json.loads(line["message"])["message"]
        address = message["params"].get("request", {}).get("url", "")
        if message["method"] == "Network.requestWillBeSent" and not address.startswith((own, "data:", "blob:")):
            found.append(f"asks another host: {address}")
    return found


def picture(driver: Any, width: int, path: Path) -> None:
    """The whole page as a picture."""
    height = min(int(driver.execute_script("return document.documentElement.scrollHeight")), LONGEST)
    set_size(driver, width, max(height, HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))


def look_at(driver: Any, address: str, site: Path, pictures: Path) -> list[str]:
    """Open each page at each width; gives what is wrong."""
    wrong = []
    for page in sorted(site.rglob("*.html")):
        name = page.relative_to(site)
        for word, width in WIDTHS.items():
            set_size(driver, width, HEIGHT)
            driver.get(f"{address}/{name}")
            wrong += [f"{name}, {word}: {what}" for what in wrong_with(driver, address)]
            picture(driver, width, pictures / word / name.with_suffix(".png"))
    return wrong


def search(driver: Any, address: str, words: str) -> list[str]:
    """Whether the search of the page at *address* finds *words*."""
    set_size(driver, WIDTHS["desk"], HEIGHT)
    driver.get(address)
    driver.execute_script(ASK, words)
    try:
        WebDriverWait(driver, 15).until(lambda one: one.execute_script(FOUND) > 0)
    except Exception:  # whatever it is called in this version: nothing was found
        return [f"{address}: the search does not find {words!r}"]
    return []


def main(site: Path, pictures: Path) -> int:
    """Look, and say what is wrong."""
    with served(site) as address, browser() as driver:
        wrong = look_at(driver, address, site, pictures)
        for start in (f"{address}/index.html", (site / "index.html").as_uri()):
            wrong += search(driver, start, "table full")
            driver.save_screenshot(str(pictures / f"search-{start.partition(':')[0]}.png"))
    for line in wrong:
        print(line, file=sys.stderr)
    count = len(list(site.rglob("*.html")))
    print(f"{count} pages, each at {' and '.join(map(str, WIDTHS.values()))} pixels: {len(wrong)} things wrong; "
          f"pictures in {pictures}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
