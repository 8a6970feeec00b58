"""The part of a model hub that Spaces are pushed to, on loopback: it keeps what it is sent."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from loopback import listening


@dataclass
class SpaceHub:
    """`requests` as (method, path, body, token) in the order they came; `files` and `settings` of the one Space."""

    url: str = ""
    requests: list[tuple[str, str, Any, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files, by their SHA-256
    settings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"secrets": {}, "variables": {}})

    def sent(self, path: str) -> list[Any]:
        """Bodies that were sent to the paths that this regular expression describes."""
        return [body for _, asked, body, _ in self.requests if re.fullmatch(path, asked)]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path, kind = urlsplit(handler.path).path, handler.headers.get("Content-Type", "")
        body: Any = data
        if "ndjson" in kind:
            body = [json.loads(line) for line in data.splitlines()]
        elif "json" in kind and data:
            body = json.loads(data)
        self.requests.append((handler.command, path, body, handler.headers.get("Authorization", "")))
        answer = json.dumps(self._do(handler.command, path, body)).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer)

    def _do(self, method: str, path: str, body: Any) -> Any:
        if path == "/api/repos/create":
            return {"url": f"{self.url}/spaces/{body.get('organization', 'me')}/{body['name']}"}
        if path.endswith("/duplicate"):
            return {"url": f"{self.url}/spaces/{body['repository']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            lfs = [
                {"path": f["path"], "uploadMode": self._mode(f["path"]), "shouldIgnore": False} for f in body["files"]
            ]
            return {"files": lfs}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**about, "actions": {"upload": {"href": f"{self.url}/put/{about['oid']}"}}}
                for about in body["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        if match := re.fullmatch(r"/put/(\w+)", path):
            self.objects[match[1]] = body
            return {}
        if "/commit/" in path:
            for line in body:
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del self.files[value["path"]]
            return {"commitUrl": f"{self.url}/spaces/me/space/commit/abc", "commitOid": "abc"}
        if match := re.fullmatch(r"/api/spaces/[^/]+/[^/]+/(secrets|variables)", path):
            settings = self.settings[match[1]]
            if method == "POST":
                settings[body["key"]] = body["value"]
            elif method == "DELETE":
                del settings[body["key"]]
            return {key: {"value": value} for key, value in settings.items()}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.files.items()]
        if path.endswith("/hardware"):
            return {"stage": "BUILDING", "hardware": {"current": None, "requested": body["flavor"]}, "gcTimeout": 900}
        return {"sha": "abc", "id": "me/space", "siblings": []}

    @staticmethod
    def _mode(name: str) -> str:
        return "lfs" if name.endswith(".safetensors") else "regular"


@contextmanager
def serving() -> Iterator[SpaceHub]:
    hub = SpaceHub()
    with listening(hub.answer) as hub.url:
        yield hub
