"""What every test relies on: no hub but one that a test starts, its own cache, and a tiny pipeline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before huggingface_hub is imported, here or in a process that a test starts: nothing listens on port 9, so a
# request to the real hub fails at once, with or without a network.
_home = tempfile.TemporaryDirectory(prefix="companion-tests-")
os.environ.update(
    HF_ENDPOINT="http://127.0.0.1:9",
    HF_HOME=_home.name,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    MPLBACKEND="Agg",
)
for name in ("COMPANION_DATA", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Stable Diffusion of a few hundred kB with random weights. Copy it, do not change it."""
    from hub import tiny_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(folder)
    return folder


@pytest.fixture
def hub() -> Iterator:
    """An empty hub on loopback."""
    from hub import serving

    with serving() as server:
        yield server
