"""A mock of W&B's server: it keeps the rows that `wandb sync` sends, each at the offset that is sent with it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Rows of one run."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rows: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """What WANDB_BASE_URL is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def keep(self, offset: int, lines: list[str]) -> None:
        """Rows overwrite those from `offset` on, as on W&B's server."""
        self.rows[offset : offset + len(lines)] = map(json.loads, lines)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What W&B's client needs of the answers to its queries."""
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}}
        if "upsertBucket" in query:
            project = {"id": "p", "name": "unlearn", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": variables["name"], "config": "{}", "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        content = json.loads(self._body())
        if not self.path.endswith("/file_stream"):
            self._reply({"data": self.server.answer(content["query"], content.get("variables") or {})})
            return
        history = content.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        self.server.keep(history["offset"], history["content"])
        self._reply({})

    def _body(self) -> bytes:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _reply(self, content: dict[str, Any]) -> None:
        answer = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server until the end of the block."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
