"""A Ray in a network namespace, and somebody in another one at the end of a cable, who tries every port of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.knock import Answer
from tests.support.processes import await_that

ROOT = Path(__file__).parents[2]
SUBNET = "10.249.77"
HOME, AWAY = f"{SUBNET}.1", f"{SUBNET}.2"
"""The addresses of the two namespaces on their cable."""
HOSTS = Path("/etc/netns")
"""Where `ip netns exec` finds the /etc/hosts of a namespace. As usual, the machine's name stands for its address there."""
LIMIT_S = 300.0
AGENT = 52365
"""The fixed port of the dashboard's agent."""

SESSION = """
import os, sys, ray
from facerec.session import ray_session
with ray_session(1):
    actor = ray.remote(type("Worker", (), {"work": lambda self: os.environ.get("RAY_AUTH_TOKEN", "none")})).remote()
    print("token", ray.get(actor.work.remote()), flush=True)
    sys.stdin.read()
"""
"""A job's own Ray, with a worker."""
CLUSTER = f"""
import os, secrets, subprocess, sys
os.environ |= {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}}
command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=1", "--node-ip-address={HOME}"]
command += ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
ray = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
while "Ray runtime started" not in ray.stdout.readline():
    pass
print("token", os.environ["RAY_AUTH_TOKEN"], flush=True)
ray.communicate()
"""
"""The head of a cluster, which has to listen to other machines."""
DRIVER = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False)
print("ran", ray.get(ray.remote(num_cpus=0)(lambda: 7).remote(), timeout=60))
"""
"""Somebody who runs a task of their own."""
REFUSED = ("refused", "401", "403", "404", "405", "UNAUTHENTICATED")
OPEN = (
    *("GET /", "GET /metrics", "/grpc.health.v1.Health/Check", "/grpc.channelz.v1.Channelz/GetServers"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
"""What Ray answers without a token: the dashboard's start page, numbers, and what gRPC itself tells of a port."""


def harmful(answers: list[Answer]) -> list[Answer]:
    """The answers that nobody should get without the token."""
    return [answer for answer in answers if answer[1] not in OPEN and answer[2] not in REFUSED]


@dataclass(frozen=True)
class Port:
    """A listening TCP port, as ``ss`` shows it."""

    address: str
    number: int
    program: str


@dataclass(frozen=True)
class Namespaces:
    """``home`` is where Ray runs, ``away`` the network namespace of somebody else."""

    home: str
    away: str

    def run(self, where: str, program: list[str], given: str = "", **environment: str) -> str:
        """What the Python program prints there, with nothing of Ray in its environment except ``environment``."""
        done = subprocess.run(
            [*self.inside(where), sys.executable, *program],
            input=given,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=ROOT,
            env=_without_ray() | environment,
            check=False,
        )
        return done.stdout + (done.stderr[-2000:] if done.returncode else "")

    def drives(self, where: str, address: str, token: str) -> bool:
        """Whether a driver there can run a task in the Ray of this address."""
        authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
        local = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if address.startswith("127.") else {}
        return "ran 7" in self.run(where, ["-c", DRIVER, address], **authentication, **local)

    def mentions(self, token: str) -> list[str]:
        """The command lines at home that hold the token: every user of a machine can read them."""
        pids = subprocess.run(["ip", "netns", "pids", self.home], capture_output=True, text=True, check=True)
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids.stdout.split()]
        assert len(lines) > 5
        return [line for line in lines if token in line]

    def gcs(self) -> int:
        """The port of Ray's global control service."""
        return next(port.number for port in self.ports() if port.program == "gcs_server")

    def inside(self, where: str) -> list[str]:
        """What to put before a command, so that it runs there."""
        return ["ip", "netns", "exec", where]

    def ports(self) -> list[Port]:
        """Every TCP port that listens at home."""
        command = [*self.inside(self.home), "ss", "-ltnpH"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found = []
        for line in lines:
            address, _, number = line.split()[3].rpartition(":")
            program = re.search(r'"([^"]+)"', line)
            found.append(
                Port(address.strip("[]").removeprefix("::ffff:"), int(number), program[1] if program else "")
            )
        return found

    def knock(self, where: str, address: str, token: str, mark: Path) -> list[Answer]:
        """All answers of all ports, asked from there."""
        ports = [str(number) for number in sorted({port.number for port in self.ports()})]
        said = self.run(where, ["-m", "tests.support.knock", address, str(mark), *ports], token)
        return [(port, question, answer) for port, question, answer in json.loads(said.splitlines()[-1])]


@contextlib.contextmanager
def namespaces() -> Iterator[Namespaces]:
    """Two network namespaces with a cable between them, of names that nobody else has. Needs root."""
    name = f"fr{os.getpid()}"
    pair = Namespaces(f"{name}h", f"{name}a")
    try:
        HOSTS.joinpath(pair.home).mkdir(parents=True)
        HOSTS.joinpath(pair.home, "hosts").write_text(f"127.0.0.1 localhost\n{HOME} {socket.gethostname()}\n")
        for here in (pair.home, pair.away):
            _run("ip", "netns", "add", here)
            _run("ip", "-n", here, "link", "set", "lo", "up")
            if here == pair.away:
                _run(
                    "ip",
                    "-n",
                    pair.home,
                    "link",
                    "add",
                    "eth0",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    here,
                )
        for here, address, other in ((pair.home, HOME, AWAY), (pair.away, AWAY, HOME)):
            _run("ip", "-n", here, "address", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", here, "link", "set", "eth0", "up")
            _run("ip", "-n", here, "route", "add", "default", "via", other)  # by which Ray finds its address
        yield pair
    finally:
        for here in (pair.home, pair.away):
            _end(here)
            subprocess.run(["ip", "netns", "delete", here], capture_output=True, check=False)
        shutil.rmtree(HOSTS / pair.home, ignore_errors=True)


@contextlib.contextmanager
def running(pair: Namespaces, program: str, folder: Path) -> Iterator[str]:
    """The program at home, with Ray's files in ``folder``, and the token that it prints. Both Rays are ended with the block."""
    process = subprocess.Popen(
        [*pair.inside(pair.home), sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=_without_ray() | {"TMPDIR": str(folder)},
    )
    try:
        assert process.stdout
        said = next((line for line in process.stdout if line.startswith("token ")), "")
        assert said, "Ray did not start"
        # The dashboard's agent comes last.
        await_that(lambda: AGENT in {port.number for port in pair.ports()}, lambda: str(pair.ports()), 60)
        yield said.split()[1]
    finally:
        _end(pair.home)
        process.communicate()


def _without_ray() -> dict[str, str]:
    named = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return named | {"PYTHONPATH": str(ROOT)}


def _end(namespace: str) -> None:
    """Kill what runs there."""
    while pids := subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True
    ).stdout.split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)
