"""An HTTP proxy that fails some of the requests it passes on, as a process of its own.

`python tests/faulty_proxy.py PORT TARGET_PORT FAULTS`, the last being the fields of `Faults` as JSON. Which requests fail is drawn from a
seed in the order in which they come; GET /-/counts tells how many were passed on, and how many failed in which way.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COUNTS = "/-/counts"
KINDS = (
    "503",  # answered without asking the server
    "500",
    "refused",  # cut before the server is asked
    "unanswered",  # done by the server, but cut before it can say so
    "halved",  # cut in the middle of the answer's body
)
# Only where a test asks for them: "forgotten", done by the server, but when asked again it knows of no such upload;
# "lost", said to be done, and not passed on.
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Please try again.</Message></Error>"
NO_SUCH_UPLOAD = b"<?xml version='1.0'?><Error><Code>NoSuchUpload</Code><Message>The upload does not exist.</Message></Error>"
COMPLETED = b"<?xml version='1.0'?><CompleteMultipartUploadResult><ETag>none</ETag></CompleteMultipartUploadResult>"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass
class Faults:
    """Which request fails, and how."""

    share: float = 0.1
    seed: int = 0
    kinds: Sequence[str] = KINDS
    only: str = ""  # a regular expression for the method and path, as in "PUT /bucket/a.tar"; others always pass
    at_most: int = 1_000_000  # failures in all

    def __post_init__(self) -> None:
        self.random, self.lock = random.Random(self.seed), threading.Lock()
        self.counts: Counter[str] = Counter()

    def draw(self, request: str) -> str:
        with self.lock:
            kind = "passed"
            failed = self.counts.total() - self.counts[kind]
            if re.match(self.only, request) and self.random.random() < self.share and failed < self.at_most:
                kind = self.random.choice(self.kinds)
            self.counts[kind] += 1
            return kind


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    target: int

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has left
            self.close_connection = True

    def pass_on(self) -> None:
        body = self._body()
        if self.path == COUNTS:
            self._answer(200, {}, json.dumps(self.faults.counts).encode())
            return
        fault = self.faults.draw(f"{self.command} {self.path}")
        if fault in ("503", "500"):
            self._answer(int(fault), {"Content-Type": "application/xml"}, SLOW_DOWN if fault == "503" else INTERNAL)
            return
        if fault == "refused":
            self._cut()
            return
        if fault == "lost":
            self._answer(200, {"Content-Type": "application/xml"}, COMPLETED)
            return
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if fault == "unanswered":
            self._cut()
            return
        if fault == "forgotten":
            self._answer(404, {"Content-Type": "application/xml"}, NO_SUCH_UPLOAD)
            return
        told = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        self._answer(answer.status, told, content, half=fault == "halved")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _answer(self, status: int, headers: dict[str, str], content: bytes, half: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if half:
            self.wfile.write(content[: len(content) // 2])
            self._cut()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self) -> None:
        """End the connection with a reset, as a machine does that is gone."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    port, Handler.target, Handler.faults = int(sys.argv[1]), int(sys.argv[2]), Faults(**json.loads(sys.argv[3]))
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
