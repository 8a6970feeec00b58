"""A small model hub on loopback, and a tiny pipeline to put on it.

Like the real hub, it answers the requests with which huggingface_hub fetches a model's files; it can be told to
misbehave. It keeps every request, so a test can assert what was asked, or that nothing was.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback import listening


@dataclass
class Repo:
    """One repository: its files, and what goes wrong with it.

    Faults: `stalls` holds the requests ("api", "head", "get") that never get an answer, `short` the files whose body
    ends before its announced length, `lies` the files that are served with other bytes than listed. A `gated` one is
    listed, but its files are for those who agreed to its conditions.
    """

    files: dict[str, bytes]
    stalls: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    lies: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False

    @property
    def commit(self) -> str:
        text = json.dumps({name: hashlib.sha1(body).hexdigest() for name, body in sorted(self.files.items())})
        return hashlib.sha1(text.encode()).hexdigest()

    def entry(self, name: str) -> dict[str, Any]:
        """A file as the hub lists it: large files by sha256, small ones by git's hash."""
        body = self.files[name]
        entry: dict[str, Any] = {"size": len(body), "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry

    def etag(self, name: str) -> str:
        entry = self.entry(name)
        return entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]


class Hub:
    """The hub: `repos` by name, `requests` as (method, path) in the order they came, `url` to give as the endpoint."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.release = threading.Event()
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
            self.info(request, match[1])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.tree(request, match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(request, match[1], match[3])
        else:
            self.send(request, 404, b"{}")

    def find(self, request: BaseHTTPRequestHandler, name: str, kind: str) -> Repo | None:
        repo = self.repos.get(name)
        if repo is None:
            self.send(request, 404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif kind in repo.stalls:
            self.release.wait(60)
            repo = None
        return repo

    def info(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if repo := self.find(request, name, "api"):
            siblings = []
            for file in sorted(repo.files):
                entry = repo.entry(file)
                siblings.append({"rfilename": file, "size": entry["size"], "blobId": entry["oid"]})
                if "lfs" in entry:
                    siblings[-1]["lfs"] = entry["lfs"]
            body = {"id": name, "modelId": name, "sha": repo.commit, "private": False, "siblings": siblings, "tags": []}
            self.send(request, 200, json.dumps(body).encode())

    def tree(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if repo := self.find(request, name, "api"):
            entries = [{"type": "file", "path": file, **repo.entry(file)} for file in sorted(repo.files)]
            for entry in entries:
                if "lfs" in entry:
                    entry["lfs"] = {"oid": entry["lfs"]["sha256"], **entry["lfs"]}
            self.send(request, 200, json.dumps(entries).encode())

    def file(self, request: BaseHTTPRequestHandler, name: str, file: str) -> None:
        repo = self.find(request, name, request.command.lower())
        if repo is None:
            return
        if repo.gated:
            self.send(request, 403, b"", {"X-Error-Code": "GatedRepo", "X-Repo-Commit": repo.commit})
            return
        if file not in repo.files:
            self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
            return
        body = repo.lies.get(file, repo.files[file])
        headers = {"ETag": f'"{repo.etag(file)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        end = len(body) // 2 if file in repo.short else len(body)
        self.send(request, status, body[start:], headers, sent=max(0, end - start))

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        sent: int | None = None,
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", "application/json")
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(body[:sent])
        request.close_connection = request.close_connection or sent is not None and sent < len(body)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    with listening(hub.answer) as hub.url:
        try:
            yield hub
        finally:
            hub.release.set()


def files(folder: Path) -> dict[str, bytes]:
    """All files under a folder, by path with forward slashes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tiny_pipeline(folder: Path, seed: int = 0, variant: str | None = None) -> None:
    """Write a Stable Diffusion of a few hundred kB with random weights: 32 px pictures, 4x4 latents."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = {t: i for i, t in enumerate([*letters, *(c + "</w>" for c in letters), start, end])}
    words = folder / "words"
    words.mkdir(parents=True)
    (words / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (words / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (words / "tokenizer_config.json").write_text(
        json.dumps({**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 16}), encoding="utf-8"
    )
    tokenizer = CLIPTokenizer.from_pretrained(words)
    for file in words.iterdir():
        file.unlink()
    words.rmdir()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=vocabulary[start],
                eos_token_id=vocabulary[end],
                pad_token_id=vocabulary[end],
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    (pipe.to(torch.float16) if variant else pipe).save_pretrained(folder, variant=variant)
