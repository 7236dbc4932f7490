"""report.html in a real browser, where one is found: nothing in its console, nothing wider than the screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from matplotlib import image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine; the parser's tests stand alone"
)
PROBE = """<script>addEventListener("load", () => {
  document.title = "WIDTH " + document.documentElement.scrollWidth + " OF " + innerWidth;
  console.log("probe:" + document.title)
})</script>"""


def _chromium(*options: str) -> str:
    """What a headless run says on its error stream, the console among it."""
    base = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    done = subprocess.run(
        [*base, *options], capture_output=True, text=True, timeout=120, env={**os.environ, "LANG": "C"}
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _console(said: str) -> list[str]:
    return re.findall(r"CONSOLE[^\]]*\] (.*)", said)


@needs_browser
@pytest.mark.parametrize("width", [1280, pytest.param(400, marks=pytest.mark.deep)])
def test_console_is_empty(reports, tmp_path, width):
    """A screenshot is taken, it is no blank page, and the browser has nothing to say."""
    shot = tmp_path / "shot.png"
    url = (reports["recall"] / "report.html").as_uri()
    options = [f"--screenshot={shot}", f"--window-size={width},2400", f"--user-data-dir={tmp_path / 'profile'}"]
    assert _console(_chromium(*options, url)) == []
    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[1] == width
    assert 0.01 < (pixels.min(axis=2) < 0.8).mean() < 0.5


@needs_browser
@pytest.mark.deep
@pytest.mark.parametrize("name", ["recall", "curves", "hostile"])
@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_is_wider_than_the_screen(reports, tmp_path, name, width):
    """Tables scroll within themselves. 500 pixels are the least that a headless window has."""
    page = (reports[name] / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n', page)[0]
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace(policy, "").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    options = ["--dump-dom", f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    said = _console(_chromium(*options, probed.as_uri()))
    assert len(said) == 1
    scrolled, shown = map(int, re.search(r"WIDTH (\d+) OF (\d+)", said[0]).groups())
    assert scrolled <= shown
