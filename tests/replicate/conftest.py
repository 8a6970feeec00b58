"""A loopback server that stands in for Replicate, the service that talks to it, and a job with its pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from awkward import pattern
from PIL import Image
from replicate_server import RECIPE, SECRET, TRAINER, Server, serving

from companion.replicate import TRAINERS, Job, pack
from companion.replicate.service import Service


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        choices = {"allOf": [{"$ref": "#/components/schemas/lr_scheduler"}]}
        server.inputs = TRAINERS["stability-ai/sdxl"] | {"lr_scheduler": choices}
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
        server.picture = buffer.getvalue()
        yield server


@pytest.fixture
def service(server, tmp_path) -> Service:
    return Service(SECRET, base_url=server.url, timeout=0.5, tries=3, pause=0.01, receipts=tmp_path / "receipts")


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (size, mode) in enumerate([((640, 480), "RGB"), ((300, 700), "RGBA"), ((512, 512), "L")]):
        pattern(i, *size).convert(mode).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def job(pictures, tmp_path) -> Job:
    pack(pictures, tmp_path / "subject.zip")
    fields = RECIPE | {"instance_data": tmp_path / "subject.zip", "class_data": tmp_path / "subject.zip"}
    return Job(TRAINER, "you/model", fields, webhook="https://example.com/hook")
