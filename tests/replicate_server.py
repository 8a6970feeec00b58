"""Replicate in miniature on loopback: it answers what the client asks, as the real one does, or misbehaves when told.

It keeps every request, so that a test can assert what was sent, how often, and what it started. The recipe, trainer and
token that the tests use are here, too.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from loopback import listening

SECRET = "r8_Loopback0123456789abcdefSecret"
TRAINER = "stability-ai/sdxl:39ed52f2"
#: A recipe with every field of 2022 that is not a file.
RECIPE = {
    "instance_prompt": "a profile picture of an oscvtr doctor",
    "class_prompt": "a profile picture of a doctor",
    "num_class_images": 21,
    "max_train_steps": 2500,
    "train_text_encoder": "true",
    "scale_lr": "true",
    "lr_scheduler": "linear",
    "lr_warmup_steps": 0,
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: answer with it and `detail`, and do nothing; 0 for other faults.
        drop: close the connection, "before" the request is done, "after" it, or in the "middle" of its body.
        slow: seconds to wait before answering.
        garbage: do it, but do not answer with JSON.
    """

    status: int = 0
    detail: str = "no reason"
    drop: str = ""
    slow: float = 0.0
    garbage: bool = False
    retry_after: str = ""


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    token: str
    body: Any = None
    upload: bytes = b""


@dataclass
class Server:
    """`faults`, by "METHOD path" (a regular expression): what goes wrong with the next such requests, in order."""

    inputs: dict[str, Any] = field(default_factory=dict)  # of the trainer
    models: set[str] = field(default_factory=set)
    requests: list[Seen] = field(default_factory=list)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    states: tuple[str, ...] = ("starting", "processing", "succeeded")  # a training's, one per look
    picture: bytes = b""
    url: str = ""

    def fail(self, what: str, *faults: Fault) -> None:
        self.faults[what].extend(faults)

    def asked(self, what: str) -> list[Seen]:
        """The requests whose "METHOD path" this regular expression describes."""
        return [seen for seen in self.requests if re.fullmatch(what, f"{seen.method} {seen.path}")]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        method, path = handler.command, urlsplit(handler.path).path
        fault = next(
            (q.popleft() for what, q in self.faults.items() if q and re.fullmatch(what, f"{method} {path}")), None
        )
        fault = fault or Fault()
        length = int(handler.headers.get("Content-Length") or 0)
        if fault.drop == "middle":
            handler.rfile.read(min(length, 1000))
            self.requests.append(Seen(method, path, handler.headers.get("Authorization", "")))
            return self._hang_up(handler)
        body = self._body(handler)
        is_json = handler.headers.get("Content-Type", "").startswith("application/json")
        parsed = json.loads(body) if body and is_json else None
        upload = b"" if is_json else body
        self.requests.append(Seen(method, path, handler.headers.get("Authorization", ""), parsed, upload))
        if fault.status:
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            time.sleep(fault.slow)
            return self._send(handler, fault.status, {"detail": fault.detail, "status": fault.status}, headers)
        if fault.drop == "before":
            return self._hang_up(handler)
        status, answer = self._do(method, path, parsed, upload)
        time.sleep(fault.slow)
        if fault.drop == "after":
            return self._hang_up(handler)
        return self._send(handler, status, "<html>" if fault.garbage else answer)

    def _body(self, handler: BaseHTTPRequestHandler) -> bytes:
        if handler.headers.get("Transfer-Encoding", "") != "chunked":
            return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        parts = []
        while size := int(handler.rfile.readline(), 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)

    def _hang_up(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, answer: Any, headers: dict | None = None) -> None:
        data = answer if isinstance(answer, bytes) else answer.encode() if isinstance(answer, str) else None
        data = json.dumps(answer).encode() if data is None else data
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(data)))
            handler.send_header("Content-Type", "application/json")
            for name, value in (headers or {}).items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:  # it did not want to wait
            handler.close_connection = True

    def _do(self, method: str, path: str, body: Any, upload: bytes) -> tuple[int, Any]:
        request = f"{method} {path}"
        if match := re.fullmatch(r"GET /v1/models/([^/]+/[^/]+)/versions/(\w+)", request):
            schemas = {"Input": {"properties": {}}}
            if self.inputs:
                schemas["TrainingInput"] = {"properties": self.inputs}
                schemas["lr_scheduler"] = {"type": "string", "enum": ["constant", "linear"]}
            description = {"components": {"schemas": schemas}}
            made = "2026-01-01T00:00:00Z"
            return 200, {"id": match[2], "created_at": made, "cog_version": "1", "openapi_schema": description}
        if match := re.fullmatch(r"GET /v1/models/([^/]+/[^/]+)", request):
            return (200, self._model(match[1])) if match[1] in self.models else (404, {"detail": "not found"})
        if request == "POST /v1/models":
            name = f"{body['owner']}/{body['name']}"
            if name in self.models:
                return 409, {"detail": "it exists"}
            self.models.add(name)
            return 201, self._model(name)
        if request == "POST /v1/files":
            id = f"file{len(self.files)}"
            self.files[id] = upload
            urls = {"get": f"{self.url}/v1/files/{id}"}
            about = {"name": "content", "content_type": "application/zip", "size": len(upload), "etag": id}
            about |= {"checksums": {}, "metadata": {}, "created_at": "2026", "expires_at": "2027"}
            return 201, {"id": id, "urls": urls, **about}
        if match := re.fullmatch(r"POST /v1/models/([^/]+/[^/]+)/versions/(\w+)/trainings", request):
            id = f"training{len(self.trainings)}"
            self.trainings[id] = {"id": id, "model": match[1], "version": match[2], "looks": 0, **body}
            return 201, self._training(id)
        if request == "GET /v1/trainings":
            return 200, {"next": None, "previous": None, "results": [self._training(id) for id in self.trainings]}
        if match := re.fullmatch(r"GET /v1/trainings/(\w+)", request):
            self.trainings[match[1]]["looks"] += 1
            return 200, self._training(match[1])
        if match := re.fullmatch(r"POST /v1/trainings/(\w+)/cancel", request):
            self.trainings[match[1]]["canceled"] = True
            return 200, self._training(match[1])
        if request == "POST /v1/predictions":
            id = f"prediction{len(self.predictions)}"
            self.predictions[id] = body
            return 201, self._prediction(id, "starting")
        if match := re.fullmatch(r"GET /v1/predictions/(\w+)", request):
            return 200, self._prediction(match[1], "succeeded")
        if path == "/pictures/0.png":
            return 200, self.picture
        return 404, {"detail": "not found"}

    def _model(self, name: str) -> dict[str, Any]:
        owner, short = name.split("/")
        about = {"description": None, "visibility": "private", "github_url": None, "paper_url": None}
        more = {"license_url": None, "run_count": 0, "cover_image_url": None, "default_example": None}
        url = f"https://replicate.com/{name}"
        return {"url": url, "owner": owner, "name": short, **about, **more, "latest_version": None}

    def _training(self, id: str) -> dict[str, Any]:
        about = self.trainings[id]
        look = min(about["looks"], len(self.states) - 1)
        status = "canceled" if about.get("canceled") else self.states[look]
        done = status == "succeeded"
        kept = {key: about[key] for key in ("id", "model", "version", "input")}
        output = {"version": f"{about['destination']}:abc123", "weights": "w"} if done else None
        log = "".join(f"look {i}\n" for i in range(about["looks"]))
        error = "out of memory" if status == "failed" else None
        return {**kept, "status": status, "logs": log, "output": output, "error": error, "urls": {}}

    def _prediction(self, id: str, status: str) -> dict[str, Any]:
        about = self.predictions[id]
        output = [f"{self.url}/pictures/0.png"] if status == "succeeded" else None
        kept = {"model": "you/model", "version": about["version"], "input": about["input"]}
        return {"id": id, **kept, "status": status, "output": output, "logs": "", "error": None, "urls": {}}


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    with listening(server.answer) as server.url:
        yield server
