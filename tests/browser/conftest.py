"""JupyterLab in a real Chromium: its own server, apart from the user's settings, and a page that opens notebooks.

Without Chromium or playwright these tests are skipped, or fail when COMPANION_REQUIRE_BROWSER=1. If
COMPANION_SCREENSHOTS names a folder, they save screenshots there, and how long each panel took to answer.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import ipykernel.kernelspec
import pytest
from editor_page import EditorPage
from notebook_page import Lab, NotebookPage, unavailable

SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


# Not for the session: while playwright's event loop is open, no other test of this process can have one of its own.
@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        unavailable("no Chromium is on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    folder, config, data = home / "notebooks", home / "config", home / "data"
    folder.mkdir()
    (config / "labconfig").mkdir(parents=True)
    disabled = {"@jupyterlab/apputils-extension:announcements": True}  # it asks whether it may look for news
    (config / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": disabled}), encoding="utf-8"
    )
    # Otherwise only the cells in view exist in the page.
    tracker = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}), encoding="utf-8")
    # JUPYTER_PATH comes before every other place, so that python3 is the Python of these tests.
    ipykernel.kernelspec.write_kernel_spec(home / "path" / "kernels" / "python3")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not re.match("JUPYTER|IPYTHON|XDG_", name)}
    environment |= {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(data),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_PATH": str(home / "path"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--allow-root",
    ]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    log = home / "lab.log"
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    try:
        lab = Lab(folder, f"http://127.0.0.1:{port}", token)
        wait_for_server(lab, server, log)
        yield lab
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}", pytrace=False)


@pytest.fixture
def notebook_page(lab, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield NotebookPage(lab, context.new_page())
    context.close()


@pytest.fixture
def opened(browser):
    """`opened(widget, theme)`: an editor on a bare page, 600 pixels wide unless another size is given."""
    contexts = []

    def open_page(widget, theme: str = "light", width: int = 600, height: int = 500, **options) -> EditorPage:
        viewport = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=viewport, has_touch=True, **options))
        return EditorPage(contexts[-1].new_page(), widget, theme)

    yield open_page
    for context in contexts:
        context.close()
