"""A headless Chromium for tests, spoken to by its DevTools protocol over two pipes, so that no driver is installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser; None where there is none."""

OPTIONS = (
    *("--headless=new", "--disable-gpu", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)

CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const plain = colour => {                      // any CSS colour as [red, green, blue, alpha] in 0..1
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data, level => level / 255);
  };
  const over = (above, below) => below.map((level, place) => above[place] * above[3] + level * (1 - above[3]));
  const light = ([red, green, blue]) => [red, green, blue].map(level =>
    level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4
  ).reduce((sum, level, place) => sum + level * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(plain(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), plain('Canvas'));
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const words = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join(' ');
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!words.trim() || !box.width || !box.height || style.visibility === 'hidden' || element.closest('title'))
      continue;
    const back = behind(element);
    const ink = over(plain(element.closest('svg') ? style.fill : style.color), back);
    const [bright, dark] = [light(ink), light(back)].sort((a, b) => b - a);
    const ratio = (bright + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} of "${words.slice(0, 40)}"`);
  }
  return found;
})()
"""
"""The texts whose contrast lies below what WCAG 2.2 asks for (AA): 4.5, of large ones 3."""

WIDER = """
[...document.body.querySelectorAll('*')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 0.5 && !element.closest('.scroll, pre, svg');
}).slice(0, 5).map(element => `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`)
"""
"""Elements that reach beyond the window, but for what is scrolled by itself."""

CUT = """
[...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
  return box.x < 0 || box.y < 0 || box.x + box.width > view.width || box.y + box.height > view.height;
}).map(text => text.textContent)
"""
"""Texts of figures that reach beyond the figure."""


class Browser:
    """One Chromium with a profile of its own.

    Args:
        profile: the folder of its profile.
    """

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        theirs, self.orders = os.pipe()
        self.answers, own = os.pipe()
        line = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{own}', "bash", PROGRAM, *OPTIONS]
        self.process = subprocess.Popen(
            [*line, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs, own),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(own)
        self.number = 0
        self.rest = b""
        self.events: list[dict[str, Any]] = []
        """What the browser told since a page was opened."""

    def close(self) -> None:
        """End it."""
        os.close(self.orders)  # it ends where nobody can give it orders any more
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.answers)

    def told(self) -> dict[str, Any]:
        """The next message. Raises EOFError where the browser has ended."""
        while b"\0" not in self.rest:
            part = os.read(self.answers, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def order(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        """Give an order and wait for its result."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": given}
        os.write(self.orders, json.dumps(asked | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (message := self.told()).get("id") != self.number:
            self.events.append(message)
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result


class Page:
    """A page of a browser: opened once, then looked at in several sizes and schemes of colour.

    Args:
        browser: where it is shown.
        address: ``file://`` or ``http://``.
    """

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser = browser
        target = browser.order("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.order(f"{domain}.enable")
        browser.events.clear()
        self.address = address
        self.order("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def order(self, method: str, **given: Any) -> dict[str, Any]:
        return self.browser.order(method, self.session, **given)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.order("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 120.0) -> Any:
        """The value of an expression once it is true."""
        limit = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            assert time.monotonic() < limit, f"{expression} was not true within {seconds} s"
            time.sleep(0.02)
        return value

    def look(self, width: int, dark: bool, height: int = 900) -> None:
        """Show it in a window of this size, by day or by night."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.order("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.order("Emulation.setEmulatedMedia", features=[scheme])

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in an input of a form, as a user does in the dialog."""
        root = self.order("DOM.getDocument")["root"]["nodeId"]
        node = self.order("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.order("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in files])

    def picture(self, path: Path, whole: bool = True) -> None:
        """Write what is shown as a PNG, the whole page or the window alone."""
        found = self.order("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def requests(self) -> list[str]:
        """What was asked for beside the page itself and what lies in it."""
        sent = [one["params"]["request"]["url"] for one in self._of("Network.requestWillBeSent")]
        return [url for url in sent if url != self.address and not url.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and errors that no script caught."""
        logged = [one["params"]["entry"] for one in self._of("Log.entryAdded")]
        found = [entry["text"] for entry in logged if entry["level"] in ("error", "warning")]
        found += [str(one["params"]["exceptionDetails"]) for one in self._of("Runtime.exceptionThrown")]
        return found + [str(one["params"]["args"]) for one in self._of("Runtime.consoleAPICalled")]

    def _of(self, method: str) -> list[dict[str, Any]]:
        self.ask("1")  # what was told before this answer has arrived
        return [one for one in self.browser.events if one["method"] == method and one.get("sessionId") == self.session]

    def faults(self) -> list[str]:
        """What is wrong with it as it is shown: too wide, unreadable, pictures that are none, texts that are cut."""
        found = [f"wider than the window: {one}" for one in self.ask(WIDER)]
        if self.ask("document.documentElement.scrollWidth > innerWidth"):
            found.append("the page is wider than the window")
        found += [f"contrast {one}" for one in self.ask(CONTRAST)]
        found += [f"cut off: {one}" for one in self.ask(CUT)]
        broken = "[...document.images].filter(one => !one.hidden && !(one.complete && one.naturalWidth)).length"
        return found + ["a picture that is none"] * self.ask(broken)

    def close(self) -> None:
        self.order("Page.close")


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
