"""S3-speaking servers for tests, each a process of its own on this machine that is reached over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import faulty_proxy

START_SECONDS = 120.0  # for a process to listen, on a machine that does much else
SECRET = "a-secret-that-must-not-be-seen"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "a-key-that-must-not-be-seen",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",  # do not look for a cloud around this machine
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
FOREIGN = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)  # the developer's


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on a port of this machine; can be killed and started again on the same port."""

    def __init__(self, port: int, *command: str) -> None:
        self.port, self.command = port, command
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, *self.command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(self.command)} does not listen; it ended with {self.process.poll()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: no connection is ended orderly."""
        self.process.kill()
        self.process.wait()


@contextmanager
def moto() -> Iterator[Server]:
    """A whole S3, in memory."""
    port = free_port()
    server = Server(port, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port))
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def proxy(target: Server, **faults: Any) -> Iterator[Server]:
    """The same S3 through `faulty_proxy`, with the fields of `Faults`."""
    port = free_port()
    server = Server(port, str(Path(faulty_proxy.__file__)), str(port), str(target.port), json.dumps(faults))
    try:
        yield server
    finally:
        server.kill()


def counts(proxy: Server) -> dict[str, int]:
    """How many requests a proxy has passed on, and how many have failed in which way."""
    with urllib.request.urlopen(proxy.url + faulty_proxy.COUNTS) as answer:
        found: dict[str, int] = json.load(answer)
    return found


def failures(proxy: Server) -> int:
    """How many requests a proxy has failed."""
    found = counts(proxy)
    return sum(found.values()) - found.get("passed", 0)


def require_access(server: Server, *, required: bool) -> None:
    """Let a moto server refuse whoever it has not given a key, or nobody."""
    data = b"0" if required else b"inf"
    urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/moto-api/reset-auth", data, {"Content-Type": "text/plain"}, method="POST")
    ).close()
