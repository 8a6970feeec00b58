"""A notebook open in JupyterLab, in a real Chromium: run it, move its sliders, see its pictures."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

# JupyterLab with --LabApp.expose_app_in_browser=True; its current widget is the open notebook.
PANEL = "window.jupyterapp?.shell?.currentWidget"


def unavailable(reason: str) -> None:
    """Skip, or fail where the browser tests are required."""
    if os.environ.get("COMPANION_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and COMPANION_REQUIRE_BROWSER=1", pytrace=False)
    pytest.skip(reason)


@dataclass
class Lab:
    """A running JupyterLab, whose notebooks stand in `folder`."""

    folder: Path
    url: str
    token: str


def screenshots() -> Path | None:
    """The folder that COMPANION_SCREENSHOTS names, made if it is not there; None without one."""
    if not (name := os.environ.get("COMPANION_SCREENSHOTS")):
        return None
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class NotebookPage:
    """A notebook open in JupyterLab. Cells are numbered as in the file."""

    def __init__(self, lab: Lab, page: Any) -> None:
        self.lab, self.page, self.path = lab, page, Path()

    def open(self, notebook: nbformat.NotebookNode, name: str) -> NotebookPage:
        """Put a copy into the server's folder, open it in a workspace of its own, and wait for its kernel."""
        self.path = self.lab.folder / f"{name}.ipynb"
        nbformat.write(notebook, self.path)
        self.page.goto(f"{self.lab.url}/lab/workspaces/{name}/tree/{name}.ipynb?reset&token={self.lab.token}")
        self.page.wait_for_function(f"{PANEL}?.sessionContext?.session?.kernel?.status === 'idle'", timeout=120_000)
        return self

    def run_all(self, timeout: float = 900) -> None:
        """Run all cells and wait, `timeout` seconds at most. An error in a cell fails the test."""
        self.command("notebook:run-all-cells", timeout)
        for index, cell in enumerate(self.json()["cells"]):
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error", f"cell {index}: {output['ename']}: {output['evalue']}"

    def command(self, name: str, timeout: float = 60) -> None:
        # Not awaited here: evaluate() has no timeout.
        self.page.evaluate(
            """name => {
                window.done = '';
                const command = window.jupyterapp.commands.execute(name);
                command.then(() => { window.done = 'yes' }, error => { window.done = String(error) });
            }""",
            name,
        )
        self.page.wait_for_function("window.done", timeout=timeout * 1000)
        assert self.page.evaluate("window.done") == "yes"

    def json(self) -> dict:
        """The notebook as the page holds it."""
        return self.page.evaluate(f"{PANEL}.content.model.toJSON()")

    def saved(self) -> nbformat.NotebookNode:
        """Save it, and read the file."""
        self.command("docmanager:save")
        return nbformat.read(self.path, as_version=4)

    def output(self, index: int) -> Any:
        """What the page shows below this cell."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-OutputArea")

    def picture(self, index: int, timeout: float = 60) -> bytes:
        """The first picture below this cell as the browser has drawn it, PNG; waits until there is one."""
        image = self.output(index).locator("img").first
        image.scroll_into_view_if_needed(timeout=timeout * 1000)
        self.page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=image.element_handle(), timeout=timeout * 1000
        )
        drawn = image.evaluate(
            """image => {
                const canvas = document.createElement('canvas');
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                canvas.getContext('2d').drawImage(image, 0, 0);
                return canvas.toDataURL('image/png');
            }"""
        )
        return base64.b64decode(drawn.split(",")[1])

    def move_slider(self, index: int, key: str = "ArrowRight") -> None:
        """Press a key on the first slider below this cell."""
        handle = self.output(index).locator(".widget-slider .noUi-handle, .live-slider input").first
        handle.focus()
        handle.press(key)

    def new_picture(self, index: int, before: bytes, timeout: float = 60) -> bytes:
        """Wait until the picture below this cell differs from `before`. How long that took is noted beside the
        screenshots, in latency.jsonl.
        """
        start = time.monotonic()
        while (now := self.picture(index)) == before:
            assert time.monotonic() < start + timeout, f"cell {index} still shows the same picture after {timeout} s"
            self.page.wait_for_timeout(50)
        if folder := screenshots():
            line = {"page": self.path.stem, "cell": index, "seconds": round(time.monotonic() - start, 2)}
            with (folder / "latency.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return now

    def at_every_size(self) -> Iterator[tuple[str, int, int]]:
        """Set the page light and dark, each in three sizes; yields "light" or "dark", the width and the height."""
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
            self.page.wait_for_function(f"document.body.dataset.jpThemeName === '{theme}'")
            for width, height in ((1920, 1080), (1366, 768), (600, 900)):
                self.page.set_viewport_size({"width": width, "height": height})
                self.page.wait_for_timeout(300)
                yield theme.split()[1].lower(), width, height

    def screenshot(self, name: str) -> None:
        if folder := screenshots():
            self.page.screenshot(path=folder / f"{name}.png")
