"""`ray job submit` as a user does it, with a token, to clusters of this machine's own processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import session
from tests import ROOT

RUN = ("python", "pipeline/run.py")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

# What a worker of a joined cluster was started with, which a variable set later would not show.
PRINT_ENVIRONMENT = """
import ray
from cluster import session
session.connect()
print(ray.get(ray.remote(lambda: open("/proc/self/environ").read()).remote()).replace(chr(0), chr(10)))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Job:
    """What became of a submitted job: the exit code of `ray job submit`, what it said, and the log kept on the head."""

    code: int
    said: str
    log: str


class LocalCluster:
    """Nodes of one cluster, each a `ray start --block`, with a home of its own for the token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.dashboard = folder, free_port(), free_port()
        inherited = {name: value for name, value in os.environ.items() if name not in session.ENVIRONMENT and not name.startswith("RAY_")}
        self.environment = inherited | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }
        (folder / "home").mkdir()
        self.ray("get-auth-token", "--generate")

    def ray(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """One command of Ray's, in the project's folder."""
        environment = self.environment | changed
        return subprocess.run(["ray", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)

    @contextmanager
    def node(self, name: str, *options: str) -> Iterator[None]:
        """A node that has joined the cluster, and leaves it at the end."""
        # Ports because others on this machine have the default ones; a folder because nodes that share one delete each other's package.
        own = [f"--{what}-port={free_port()}" for what in ("dashboard-agent-listen", "metrics-export")]
        own.append(f"--temp-dir={self.folder}/{name}")
        log = self.folder / f"{name}.log"
        command = ["ray", "start", "--block", "--object-store-memory=100000000", *own, *options]
        with subprocess.Popen(command, env=self.environment, stdout=log.open("w"), stderr=subprocess.STDOUT) as process:
            try:
                while "Ray runtime started" not in log.read_text():
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.1)
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=120)

    def submit(self, *entrypoint: str, **env_vars: str) -> Job:
        """Submit the project's folder with a command, and wait for its end."""
        name = f"job-{time.monotonic_ns()}"
        options = ["--working-dir", ".", "--submission-id", name, "--runtime-env-json", json.dumps({"env_vars": env_vars})]
        done = self.ray("job", "submit", *(options if env_vars else options[:4]), "--", *entrypoint)
        return Job(done.returncode, done.stdout + done.stderr, self.ray("job", "logs", name).stdout)


@contextmanager
def cluster(head_cpus: int, *machines_cpus: int) -> Iterator[LocalCluster]:
    """A head, and machines that joined it, each with so many CPUs."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder, ExitStack() as nodes:
        local = LocalCluster(Path(folder))
        ports = (f"--port={local.port}", f"--dashboard-port={local.dashboard}", f"--ray-client-server-port={free_port()}")
        nodes.enter_context(local.node("head", "--head", f"--num-cpus={head_cpus}", *ports))
        for number, cpus in enumerate(machines_cpus):
            nodes.enter_context(local.node(f"machine{number}", f"--address=127.0.0.1:{local.port}", f"--num-cpus={cpus}"))
        yield local


@pytest.fixture(scope="module")
def head_2_cpus() -> Iterator[LocalCluster]:
    """A cluster of one machine with two CPUs."""
    with cluster(2) as local:
        yield local


def test_a_run_ends_with_the_jobs_success(head_2_cpus: LocalCluster, tmp_path: Path) -> None:
    job = head_2_cpus.submit(*RUN, "--preset", "smoke", "--run", str(tmp_path / "run"))
    assert job.code == 0, job.said
    assert "victim: finished" in job.log
    assert "not logged" not in job.log
    audit = subprocess.run([sys.executable, "pipeline/verify.py", "--run", str(tmp_path / "run")], cwd=ROOT, check=False)
    assert audit.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--preset", "smoke", "--run", "here"], 2, "'here' is a relative path, and a Ray job's working directory is deleted with the job"),
        (["--preset", "smok"], 2, "unknown preset 'smok'"),
        (["--preset", "smoke", "--data", "/no/such/folder"], 1, "/no/such/folder"),
    ],
)
def test_a_failed_run_ends_with_the_jobs_failure_and_its_reason(
    head_2_cpus: LocalCluster, tmp_path: Path, arguments: list[str], code: int, reason: str
) -> None:
    job = head_2_cpus.submit(*RUN, "--run", str(tmp_path / "run"), *arguments)
    assert job.code == 1  # of Ray's command, whatever the job's own is
    assert f"exit code {code}" in job.said
    assert reason in job.log
    assert "Traceback" not in job.log


def test_workers_start_with_the_environment_of_the_project_or_the_users(head_2_cpus: LocalCluster) -> None:
    job = head_2_cpus.submit("python", "-c", PRINT_ENVIRONMENT, MALLOC_TRIM_THRESHOLD_="123456")
    assert job.code == 0, job.said
    started_with = dict(line.split("=", 1) for line in job.log.splitlines() if "=" in line)
    expected = session.ENVIRONMENT | {"MALLOC_TRIM_THRESHOLD_": "123456"}
    assert {name: started_with.get(name) for name in expected} == expected


def test_who_has_no_token_can_submit_nothing(head_2_cpus: LocalCluster) -> None:
    refused = head_2_cpus.ray("job", "submit", "--", "python", "--version", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "Authentication required" in refused.stdout + refused.stderr
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{head_2_cpus.dashboard:04X}")] == [
        f"0100007F:{head_2_cpus.dashboard:04X}"  # 127.0.0.1
    ]


def test_a_run_on_several_machines_and_a_head_without_work(tmp_path: Path) -> None:
    with cluster(0, 1, 1) as local:
        job = local.submit(*RUN, "--preset", "smoke", "--run", str(tmp_path / "run"), "--workers", "2")  # so many only both have
        assert job.code == 0, job.said
        assert "not logged" not in job.log
    audit = subprocess.run([sys.executable, "pipeline/verify.py", "--run", str(tmp_path / "run")], cwd=ROOT, check=False)
    assert audit.returncode == 0
