"""Pages as a browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Arguments of :func:`look` for everything that a page is looked at on.
LOOKS = pytest.mark.parametrize(
    "how",
    [{}, {"dark": True}, {"width": 390}, {"width": 700, "printed": True}],
    ids=["light", "dark", "phone", "paper"],
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
)
# A script added to a copy of the page writes what the browser made of it into the page.
_PROBE = """<script>addEventListener('load', () => {
  const found = {
    images: [...document.images].map(i => ({name: i.alt, loaded: i.complete && i.naturalWidth > 100 && i.clientWidth > 100})),
    tables: Object.fromEntries([...document.querySelectorAll('table')].map(
      t => [t.id, [...t.rows].map(r => [...r.cells].map(c => c.innerText.replace(/\\s+/g, ' ').trim()))])),
    claims: [...document.querySelectorAll('#claims > li')].map(l => l.className),
    outside: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
    wide: document.documentElement.scrollWidth > window.innerWidth,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
    scripts: document.scripts.length - 1,
    background: getComputedStyle(document.body).backgroundColor,
    text: document.body.innerText,
  };
  const p = document.createElement('pre'); p.id = 'probe'; p.textContent = JSON.stringify(found); document.body.append(p);
  if (parent !== window) parent.postMessage(p.textContent, '*');
})</script>"""
# Windows are at least 500 pixels wide: a phone is a frame, which sends what was found to the page around it.
_FRAME = """<!doctype html><script>addEventListener('message', e => {{
  const p = document.createElement('pre'); p.id = 'probe'; p.textContent = e.data; document.body.append(p);
}})</script><body><iframe src="{uri}" style="width:{width}px;height:1600px;border:0"></iframe></body>"""


def look(page: Path, folder: Path, *, width: int = 1200, dark: bool = False, printed: bool = False) -> dict[str, Any]:
    """Opens a page in headless chromium: its pictures, tables (cells as text), claims, and what it loads from elsewhere.

    ``printed`` applies its style for paper.
    """
    assert CHROMIUM is not None
    copy = folder / "probe.html"
    text = page.read_text().replace("</body>", _PROBE + "</body>")
    if printed:
        assert "@media print" in text
        text = text.replace("@media print", "@media all")
    copy.write_text(text)
    if width < 500:
        frame = folder / "frame.html"
        frame.write_text(_FRAME.format(uri=copy.as_uri(), width=width))
        copy = frame
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width, 500)},1600",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        copy.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r'<pre id="probe">(.*?)</pre>', shown, re.DOTALL)
    assert match, shown[-500:]
    return json.loads(unescape(match[1]))


def look_over(page: Path, folder: Path, **how: Any) -> dict[str, Any]:
    """Like :func:`look`; checks what holds for every page."""
    found = look(page, folder, **how)
    assert found["broken"] == [] and found["outside"] == [] and found["scripts"] == 0 and not found["wide"]
    assert found["background"] == ("rgb(23, 22, 28)" if how.get("dark") else "rgb(255, 255, 255)")
    return found
