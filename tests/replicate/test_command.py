"""`companion replicate` from the command line, against a server on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from awkward import pattern
from replicate_server import SECRET, TRAINER, Fault
from typer.testing import CliRunner

from companion import cli
from companion.replicate.service import TOKEN


def call(*words: str, input: str | None = None):
    return CliRunner().invoke(cli.app, ["replicate", *words], input=input)


@pytest.fixture
def command(server, pictures, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv(TOKEN, SECRET)
    monkeypatch.setenv("REPLICATE_BASE_URL", server.url)
    monkeypatch.setattr("companion.ROOT", tmp_path)
    monkeypatch.setattr("companion.replicate.service.time.sleep", lambda seconds: None)
    assert "3 pictures of 512 x 512" in call("zip", str(pictures), str(tmp_path / "a.zip")).output
    prompts = ["--instance-prompt", "a zwx dog", "--class-prompt", "a dog"]
    return ["--trainer", TRAINER, "--destination", "you/dog", "--instance-data", str(tmp_path / "a.zip"), *prompts]


def test_the_command_trains_once_and_draws(server, command, tmp_path):
    declined = call("train", *command, input="n\n")
    assert declined.exit_code == 1 and not server.trainings and "costs money" in declined.output
    for _ in range(2):
        done = call("train", *command, "--yes", "--set", "lr_scheduler=linear")
        assert done.exit_code == 0, done.output
        assert "class_prompt: this trainer has no place" in done.output
        assert "training0 succeeded. you/dog:abc123" in done.output
    assert len(server.trainings) == 1
    drawn = call("predict", "you/dog:abc123", "a zwx dog", "--out", str(tmp_path / "out"))
    assert Path(drawn.output.strip()).read_bytes() == server.picture
    refused = call("predict", "you/dog:abc123", "a zwx dog", "--size", "500")
    assert refused.exit_code and "500 x 500" in f"{refused.output} {refused.exception}"
    assert "training0: canceled" in call("cancel", "training0").output
    followed = call("follow", "training0")
    assert followed.exit_code == 1 and "training0 canceled" in followed.output
    assert SECRET not in done.output + drawn.output + followed.output


def test_zipping_says_what_is_left_out_and_overwrites_nothing(pictures, tmp_path):
    (pictures / "deep").mkdir()
    pattern(7, 600, 600).save(pictures / "deep" / "more.jpg")
    pattern(0, 320, 240).save(pictures / "small.png")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    done = call("zip", str(pictures), str(tmp_path / "b.zip"), "--size", "256")
    assert done.exit_code == 0 and "4 pictures of 256 x 256 from pictures" in done.output
    assert "deep/more.jpg" in done.output and "small.png is nearly the same as 0.png" in done.output
    assert "broken.jpg begins like a picture" in done.output and "b.zip: " in done.output
    assert "5 pictures" in call("zip", str(pictures), str(tmp_path / "c.zip"), "--keep-alike").output
    before = (tmp_path / "b.zip").read_bytes()
    again = call("zip", str(pictures), str(tmp_path / "b.zip"))
    assert again.exit_code == 2 and "nothing is overwritten" in again.output
    assert (tmp_path / "b.zip").read_bytes() == before


def test_too_few_pictures_are_refused_before_anything_is_sent(server, command, pictures, tmp_path):
    (pictures / "2.png").unlink()
    few = call("zip", str(pictures), str(tmp_path / "few.zip"))
    assert few.exit_code == 2 and "DreamBooth needs at least 3" in few.output and not (tmp_path / "few.zip").exists()
    (tmp_path / "a.zip").write_bytes(b"no zip")
    for more in (["--yes"], ["--dry-run"]):
        refused = call("train", *command, *more)
        assert refused.exit_code == 2 and "a.zip is neither a folder nor a whole zip" in refused.output
    assert not server.requests


def test_a_dry_run_sends_nothing_and_needs_no_token(server, command, monkeypatch):
    monkeypatch.delenv(TOKEN)
    done = call("train", *command, "--dry-run")
    assert done.exit_code == 0 and "SENT ONCE" in done.output and not server.requests


def test_the_command_refuses_in_one_sentence(server, command, monkeypatch):
    server.fail(r"GET /v1/models/.*", Fault(status=401, detail="no"))
    refused = call("train", *command, "--yes")
    assert refused.exit_code == 2 and "Make a new token" in refused.output and "Traceback" not in refused.output
    wrong = call("train", *command, "--dry-run", "--set", "lr_scheduler")
    assert wrong.exit_code == 2 and "is not NAME=VALUE" in wrong.output


def test_importing_needs_neither_the_client_nor_numpy():
    hidden = "import sys; sys.modules.update(replicate=None, httpx=None, numpy=None, PIL=None)"
    subprocess.run([sys.executable, "-c", f"{hidden}; import companion.replicate.command"], check=True)
