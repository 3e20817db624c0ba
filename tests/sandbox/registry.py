"""A container registry on this machine, in memory: as much of the protocol as a push and a pull use."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Registry:
    """Holds what was pushed until it is closed. Engines speak plain HTTP with 127.0.0.0/8."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}  # by tag and by digest: media type and text
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(200, b"{}")
        elif found := re.fullmatch(r"/v2/.*/blobs/(sha256:\w+)", self.path):
            self._answer(200, self.registry.blobs[found[1]]) if found[1] in self.registry.blobs else self._unknown(
                "BLOB"
            )
        elif (found := re.fullmatch(r"/v2/(.*)/manifests/(.*)", self.path)) and found[2] in self.registry.manifests:
            kind, text = self.registry.manifests[found[2]]
            self._answer(200, text, {"Content-Type": kind, "Docker-Content-Digest": _digest(text)})
        else:
            self._unknown("MANIFEST")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(202, b"", {"Location": f"{self.path}upload-{id(self)}-{len(self.registry.blobs)}"})

    def do_PATCH(self) -> None:
        body = self._body()
        self.registry.blobs[urlsplit(self.path).path] = body
        self._answer(202, b"", {"Location": self.path, "Range": f"0-{len(body) - 1}"})

    def do_PUT(self) -> None:
        body = self._body()
        if found := re.fullmatch(r"/v2/(.*)/manifests/(.*)", self.path):
            self.registry.manifests[found[2]] = self.registry.manifests[_digest(body)] = (
                self.headers["Content-Type"],
                body,
            )
        else:
            blob = self.registry.blobs.pop(urlsplit(self.path).path, b"") + body
            self.registry.blobs[parse_qs(urlsplit(self.path).query)["digest"][0]] = blob
        self._answer(201, b"", {"Docker-Content-Digest": _digest(body)})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _unknown(self, what: str) -> None:
        self._answer(404, json.dumps({"errors": [{"code": f"{what}_UNKNOWN", "message": "manifest unknown"}]}).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
