"""The Space as it would be pushed, in a real Chromium: pictures in each tab, and eight visitors at once."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
from notebook_page import screenshots
from PIL import Image

import companion
from companion.controlnet import controlnet_of
from companion.space import command

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = 6
VISITORS = 8


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The address of the page, served from a folder as `companion space build` makes it, with ControlNets."""
    home, nets, unet = tmp_path_factory.mktemp("space"), {}, companion.load("tabletop", device="cpu").unet
    for condition in ("canny", "openpose", "scribble"):
        nets[condition] = home / "nets" / condition
        controlnet_of(unet).save_pretrained(nets[condition])
    out = command.build(home / "space", "tabletop", nets=nets)
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


def drawn(panel: Any) -> list[str]:
    """The addresses of the pictures that the tab has drawn last."""
    pictures = panel.locator(".drawn img")
    return [pictures.nth(i).get_attribute("src") or "" for i in range(pictures.count())]


def draw(page: Any, panel: Any, prompt: str, number: int = 1) -> list[bytes]:
    """Ask for so many new pictures, wait for them, and give their bytes."""
    panel.get_by_label("Prompt", exact=True).fill(prompt)
    before = drawn(panel)
    panel.get_by_role("button", name="Draw", exact=True).click()
    end = time.monotonic() + 240
    while len(now := drawn(panel)) != number or set(now) & set(before):
        assert time.monotonic() < end, "no new picture came"
        page.wait_for_timeout(200)
    return [page.request.get(address).body() for address in now]


def image(page: Any, locator: Any) -> np.ndarray:
    """The pixels of a picture on the page (H, W, 3)."""
    locator.wait_for(timeout=60_000)
    return np.asarray(Image.open(io.BytesIO(page.request.get(locator.get_attribute("src")).body())).convert("RGB"))


def paint(page: Any, panel: Any) -> None:
    """A stroke through the middle of the tab's canvas."""
    canvas = panel.locator("canvas").filter(visible=True).first
    canvas.wait_for(timeout=60_000)
    page.wait_for_timeout(2500)  # the editor fits its picture into the page
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 60, middle[1])
    page.mouse.down()
    for step in range(8):
        page.mouse.move(middle[0] - 60 + 15 * step, middle[1] + 10 * (step % 2), steps=3)
    page.mouse.up()
    page.wait_for_timeout(1000)


def screenshot(page: Any, name: str) -> None:
    if folder := screenshots():
        page.screenshot(path=folder / f"space-{name}.png")


def test_text_to_image(page):
    panel = open_tab(page, "Text to image")
    (first,) = draw(page, panel, "a red ball on grass by day")
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    (second,) = draw(page, panel, "a glass cone on snow at night")
    assert second != first


def test_several_pictures_are_a_gallery_and_their_steps_are_shown(page):
    panel = open_tab(page, "Text to image")
    panel.get_by_role("spinbutton", name="Pictures").or_(panel.get_by_label("number input for Pictures")).first.fill(
        "3"
    )
    panel.get_by_label("Prompt", exact=True).fill("a blue tree on snow at sunset")
    # A step may be gone sooner than it is looked for: the page itself writes down every text that it shows.
    page.evaluate(
        """() => { window.shown = []; new MutationObserver(() => {
            const steps = document.body.innerText.match(/Step \\d+ of \\d+, picture \\d of 3/g);
            if (steps) window.shown.push(...steps);
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    panel.get_by_role("button", name="Draw", exact=True).click()
    end = time.monotonic() + 240
    while len(drawn(panel)) != 3:
        assert time.monotonic() < end
        page.wait_for_timeout(200)
    assert any(f"of {STEPS}, picture" in step for step in page.evaluate("() => window.shown"))
    captions = panel.locator(".drawn").get_by_text("seed").all_inner_texts()
    seeds = [int(caption.split()[-1]) for caption in captions]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    screenshot(page, "text-to-image")
    # The one that is clicked is used in the next tab.
    wanted = image(page, panel.locator(".drawn img").nth(1))
    panel.locator(".drawn img").nth(1).click()
    page.wait_for_timeout(1000)
    panel.get_by_role("button", name="Use it in Image to image").click()
    panel = page.get_by_role("tabpanel").filter(visible=True).filter(has_text="Strength")
    panel.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    assert np.array_equal(image(page, panel.locator(".image-frame img").first), wanted)


def test_image_to_image(page):
    panel = open_tab(page, "Image to image")
    assert draw(page, panel, "a gold robot left of a red house on sand by day")
    screenshot(page, "image-to-image")


def test_an_upload_is_read_by_the_rules_or_gets_its_sentence(page, tmp_path):
    panel = open_tab(page, "Image to image")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    Image.fromarray(np.full((60, 90), 65535, np.uint16)).save(tmp_path / "deep.png")
    panel.get_by_label("Remove Image").or_(panel.get_by_label("Clear")).first.click()
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "broken.png")
    panel.get_by_text("'broken.png' begins like a picture, but is cut short").wait_for(timeout=60_000)
    screenshot(page, "unreadable")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "deep.png")
    panel.get_by_text("16 bits to 8, to RGB; cropped to its middle, 60 x 60").wait_for(timeout=60_000)
    shown = image(page, panel.locator(".image-frame img").first)
    assert shown.shape == (128, 128, 3) and shown.min() == 255


def test_inpainting(page):
    panel = open_tab(page, "Inpainting")
    paint(page, panel)
    assert draw(page, panel, "a blue tree on snow at sunset")
    screenshot(page, "inpainting")


def test_another_picture_is_inpainted_than_the_first(page, tmp_path):
    panel = open_tab(page, "Inpainting")
    panel.locator("canvas").first.wait_for(timeout=60_000)
    (tmp_path / "not.pdf").write_bytes(b"%PDF-1.7")
    upload = panel.locator("input[type=file]").last  # the first is the editor's own, which is hidden
    upload.set_input_files(tmp_path / "not.pdf")
    panel.get_by_text("'not.pdf' is a PDF document").wait_for(timeout=60_000)
    Image.new("RGB", (200, 100), (250, 10, 10)).save(tmp_path / "red.png")
    upload.set_input_files(tmp_path / "red.png")
    panel.get_by_text("cropped to its middle, 100 x 100").wait_for(timeout=60_000)
    paint(page, panel)
    draw(page, panel, "a blue tree on snow at sunset")
    kept = image(page, panel.locator(".drawn img").first)[:20]
    assert np.abs(kept.astype(int) - (250, 10, 10)).max() <= 3, "outside of the stroke it is the upload"


def test_controlnet_follows_a_map_that_is_found_and_one_that_is_drawn(page):
    panel = open_tab(page, "ControlNet")
    panel.get_by_role("button", name="Show what it follows").click()
    followed = panel.locator("[data-testid=detailed-image], .image-frame img").last
    edges = panel.get_by_label("What it follows").locator("img").or_(followed).first
    edges.wait_for(timeout=120_000)
    assert draw(page, panel, "a gold robot left of a blue house on snow at sunset")
    screenshot(page, "controlnet")
    panel.get_by_label("I draw it here").check()
    paint(page, panel)
    assert draw(page, panel, "a red ball on grass by day")
    lines = image(page, panel.locator(".image-frame img").filter(visible=True).last)
    assert set(np.unique(lines)) == {0, 255} and 0 < (lines > 0).mean() < 0.1
    screenshot(page, "scribble")


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
                return json.loads(value)[0][0]["image"]["url"]
    raise AssertionError("the queue said nothing")


def test_a_room_full_of_visitors_is_served(space):
    """All at once, each with a seed of their own; everybody gets their own picture, one after the other."""
    found: dict[int, bytes | Exception] = {}

    def one(seed: int) -> None:
        try:
            url = ask(space, "a red ball on grass by day", "", STEPS, 4, seed, 1)
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
    alone = urllib.request.urlopen(ask(space, "a red ball on grass by day", "", STEPS, 4, 3, 1), timeout=60).read()
    assert alone == found[3], "the others in the queue changed nothing"
    print(f"{VISITORS} visitors at once: all answered in {seconds:.1f} s")


def test_an_upload_that_is_too_large_is_refused(space):
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    body = head + base64.b64encode(os.urandom(14_000_000)) + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{space}/gradio_api/upload", body, kind)
    with pytest.raises(OSError):
        urllib.request.urlopen(request, timeout=60).close()
