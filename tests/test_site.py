"""The pages of the site, as a browser shows them; `nox -s docs` builds them and runs this.

GPUNN_SITE is the folder that they are in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(os.environ.get("GPUNN_SITE", "no site"))
PAGES = sorted(
    path
    for path in SITE.rglob("*.html")
    if "_modules" not in path.parts and path.name != "search.html"
)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not PAGES, reason="GPUNN_SITE names no folder with pages")


def name_of(path: Path) -> str:
    return str(path.relative_to(SITE))


class Page(HTMLParser):
    """The links, anchors and unresolved names of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.unresolved = 0
        self._inside_a_link = 0
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given["id"] or ""} if "id" in given else set()
        for name in ("href", "src"):
            self.links |= {given[name] or ""} if name in given else set()
        self._inside_a_link += tag == "a"
        classes = (given.get("class") or "").split()
        self.unresolved += tag == "code" and "py-obj" in classes and not self._inside_a_link

    def handle_endtag(self, tag: str) -> None:
        self._inside_a_link -= tag == "a"


def test_every_public_name_has_a_page() -> None:
    import gpunn  # noqa: PLC0415
    from gpunn import estimators  # noqa: PLC0415

    names = [f"gpunn.{name}" for name in gpunn.__all__ if name != "estimators"]
    names += [f"gpunn.estimators.{name}" for name in estimators.__all__]
    assert [name for name in names if not (SITE / "api" / f"{name}.html").exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    page = Page(path)
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in {"https", "data"}, link
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        assert target.exists(), link
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in Page(target).anchors, link
    # Docstrings, which the reference quotes, name parameters in the same way.
    if path.parent == SITE and path.name != "reference.html":
        assert page.unresolved == 0


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_browser_shows_every_formula_and_complains_of_nothing(path: Path, tmp_path: Path) -> None:
    assert BROWSER, "there is no Chromium: on Debian, apt install chromium"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    wait = ("--virtual-time-budget=20000", f"--user-data-dir={tmp_path}")
    shown = subprocess.run(  # noqa: S603 (the browser that was found)
        [BROWSER, *options, *wait, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    wanted = len(re.findall(r'class="math ', path.read_text("utf-8")))
    assert len(re.findall("<mjx-container", shown.stdout)) >= wanted
    assert "<mjx-merror" not in shown.stdout
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
