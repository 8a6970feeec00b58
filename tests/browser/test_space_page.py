"""The Space as it would be pushed, in a real Chromium: a picture in each tab, and eight visitors at once."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from companion.space import command

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = 6
VISITORS = 8


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The address of the page, served from a folder that `companion space build` wrote."""
    out = command.build(tmp_path_factory.mktemp("space") / "space", "tabletop")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(out.parent / "pictures"),
        "STEPS": str(STEPS),
    }
    log = out.parent / "log"
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=out, env=environment, stdout=file, stderr=file)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while time.monotonic() < end and server.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/config", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        else:
            pytest.fail(f"The Space did not start:\n{log.read_text(encoding='utf-8')}", pytrace=False)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def page(space, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1250})
    page = context.new_page()
    page.goto(space)
    page.get_by_role("tab", name="Text to image").wait_for(timeout=120_000)
    yield page
    context.close()


def open_tab(page: Any, name: str) -> Any:
    """The panel of a tab."""
    page.get_by_role("tab", name=name).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_role("button", name="Draw", exact=True).wait_for(timeout=60_000)
    return panel


def drawn(panel: Any) -> str:
    """The address of the picture that the tab has drawn last; "" when there is none."""
    picture = panel.locator(".image-frame img").last
    return (picture.get_attribute("src") or "") if picture.count() else ""


def draw(page: Any, panel: Any, prompt: str) -> bytes:
    """Ask for a picture, wait for a new one, and give its bytes."""
    panel.get_by_label("Prompt", exact=True).fill(prompt)
    before = drawn(panel)
    panel.get_by_role("button", name="Draw", exact=True).click()
    end = time.monotonic() + 120
    while (now := drawn(panel)) == before or not now:
        assert time.monotonic() < end, "no new picture came"
        page.wait_for_timeout(200)
    return page.request.get(now).body()


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("COMPANION_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"space-{name}.png")


def test_text_to_image(page):
    panel = open_tab(page, "Text to image")
    first = draw(page, panel, "a red ball on grass by day")
    screenshot(page, "text-to-image")
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert draw(page, panel, "a glass cone on snow at night") != first


def test_image_to_image(page):
    panel = open_tab(page, "Image to image")
    assert draw(page, panel, "a gold robot left of a red house on sand by day")
    screenshot(page, "image-to-image")


def test_inpainting(page):
    panel = open_tab(page, "Inpainting")
    canvas = panel.locator("canvas").first
    canvas.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)  # the editor fits its picture into the page
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 60, middle[1])
    page.mouse.down()
    for step in range(8):
        page.mouse.move(middle[0] - 60 + 15 * step, middle[1] + 10 * (step % 2), steps=3)
    page.mouse.up()
    page.wait_for_timeout(500)
    assert draw(page, panel, "a blue tree on snow at sunset")
    screenshot(page, "inpainting")


def test_what_cannot_be_drawn_is_said_on_the_page(page):
    panel = open_tab(page, "Inpainting")
    panel.locator("canvas").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    panel.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("Nothing is painted").first.wait_for(timeout=60_000)
    screenshot(page, "nothing-painted")


def ask(url: str, *data: Any) -> str:
    """Draw through the queue as a program does, and give the picture's address."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/text_to_image", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/text_to_image/{event}", timeout=240) as stream:
        kind = ""
        for line in stream:
            name, _, value = line.decode().strip().partition(": ")
            kind = value if name == "event" else kind
            if name == "data" and kind in ("complete", "error"):
                assert kind == "complete", value
                return json.loads(value)[0]["url"]
    raise AssertionError("the queue said nothing")


def test_a_room_full_of_visitors_is_served(space):
    """All at once, each with a seed of their own; everybody gets their own picture, one after the other."""
    found: dict[int, bytes | Exception] = {}

    def one(seed: int) -> None:
        try:
            url = ask(space, "a red ball on grass by day", "", STEPS, 4, seed)
            found[seed] = urllib.request.urlopen(url, timeout=60).read()
        except Exception as error:
            found[seed] = error

    begin = time.monotonic()
    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    errors = [answer for answer in found.values() if isinstance(answer, Exception)]
    assert not errors and len(found) == VISITORS, errors
    assert len(set(found.values())) == VISITORS, "each seed has a picture of its own"
    alone = urllib.request.urlopen(ask(space, "a red ball on grass by day", "", STEPS, 4, 3), timeout=60).read()
    assert alone == found[3], "the others in the queue changed nothing"
    print(f"{VISITORS} visitors at once: all answered in {seconds:.1f} s")


def test_an_upload_that_is_too_large_is_refused(space):
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    body = head + base64.b64encode(os.urandom(7_000_000)) + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{space}/gradio_api/upload", body, kind)
    with pytest.raises(OSError):
        urllib.request.urlopen(request, timeout=60).close()
