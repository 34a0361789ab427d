"""Many hosts on one machine: namespaces with an address, a hostname, a /tmp and processes of their own, and Ray on each.

    python -m cluster.testbed up --hosts 2          head, h1 and h2 on a bridge
    python -m cluster.testbed exec head -- ray status
    python -m cluster.testbed cut h1                its cable; `mend h1` puts it back
    python -m cluster.testbed kill h1               its power; `add h3` is a new host
    python -m cluster.testbed slow h2 50            50 ms on what it receives; 0 takes it off
    python -m cluster.testbed down

A host is its network namespace, and the processes in that namespace are the host's. So the testbed touches no Ray but its
own, and `down` finds everything even if the process that called `up` was killed. Ray requires a token, which `up` draws
and root alone can read. The hosts share the machine's files except /tmp and /dev/shm; --share names folders below /tmp that
they need.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_S = 90.0
"""Longest time for a host to have started Ray."""

INIT = """
set -e
state=$1 host=$2 shared=$3; shift 3
hostname "$host"
ip link set lo up
mount -t tmpfs tmpfs "$state/tmp"
IFS=:
for folder in $shared; do
    mkdir -p "$state$folder"
    mount --bind "$folder" "$state$folder"
done
mount --move "$state/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
mount --bind "$state/hosts" /etc/hosts
set +e
cd /
while :; do "$@"; sleep 1; done
"""
"""A host's first process. It starts Ray again when it ends, as a service manager does: a host whose cable was cut for
long is dead to the others, and joins anew once it is mended."""


class TestbedError(Exception):
    """What is missing or in the way, in one line."""

    __test__ = False  # no pytest class, for all its name


def ray_settings() -> dict[str, str]:
    """Ray's settings in ray.env, for an environment."""
    lines = (ROOT / "cluster" / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def missing() -> str | None:
    """What this machine lacks for a testbed, in one line; None where it can have one."""
    if lacking := [tool for tool in ("ip", "tc", "unshare", "nsenter") if not shutil.which(tool)]:
        return f"the testbed needs {', '.join(lacking)} (Debian: apt install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "the testbed needs root, for network namespaces"
    if subprocess.run(
        ["unshare", "-m", "-u", "-i", "-p", "-n", "--fork", "true"], capture_output=True
    ).returncode:
        return "the testbed needs a kernel or container that allows namespaces (docker run --privileged)"
    return None


class Testbed:
    """A head without CPUs and ``hosts`` workers h1, h2, ...; as a context it goes down again however the block ends."""

    __test__ = False  # no pytest class, for all its name

    def __init__(
        self,
        hosts: int = 2,
        cpus: int = 1,
        *,
        name: str = "tb",
        shared: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        """``name`` tells testbeds apart. ``environment`` is added to that of Ray on each host, and of commands there."""
        self.hosts, self.cpus, self.name = hosts, cpus, name
        self.subnet = f"10.{200 + zlib.crc32(name.encode()) % 50}.77"
        self.head = f"{self.subnet}.1"
        self._bridge, self._state = f"{name}-br", Path(f"/run/facerec-{name}")
        folders = {ROOT, Path(sys.prefix).resolve(), *(folder.resolve() for folder in shared)}
        self._shared = ":".join(sorted(str(folder) for folder in folders if folder.is_relative_to("/tmp")))
        self.token = self._state / "token"
        """The file of Ray's token. Hosts are told its path: a command line is visible to every user of the machine."""
        authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        self._environment = authentication | ray_settings() | (environment or {})

    def __enter__(self) -> Testbed:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Bridge and hosts, with Ray running on all of them; takes down what was begun where it fails."""
        if lacking := missing():
            raise TestbedError(lacking)
        if self._state.exists():
            raise TestbedError(f"testbed {self.name} is up already, or was left half up; take it down first")
        try:
            (self._state / "tmp").mkdir(parents=True)
            (self._state / "hosts").write_text("127.0.0.1 localhost\n")
            self.token.touch(mode=0o600)
            self.token.write_text(secrets.token_hex(32))
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "address", "add", f"{self.subnet}.254/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
            self._await_ray(self._plug_in("head"))
            for host in [self._plug_in(f"h{number + 1}") for number in range(self.hosts)]:
                self._await_ray(host)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Processes, namespaces, bridge and files, also of a testbed that is only half there."""
        for host in self.standing():
            self._remove(host)
        if Path("/sys/class/net", self._bridge).exists():
            _run("ip", "link", "delete", self._bridge)
        if self._state.exists():
            (self._state / "tmp").rmdir()  # never a tree: in the hosts, folders that matter are mounted there
            for file in self._state.iterdir():
                file.unlink()
            self._state.rmdir()

    def add(self, host: str) -> None:
        """Power on a new host, which joins the cluster."""
        if host in self.standing():
            raise TestbedError(f"{host} is there already")
        self._await_ray(self._plug_in(host))

    def kill(self, host: str) -> None:
        """A power cut: the cable first, as the dead say no goodbye, which the kernel would do on closing sockets."""
        self.cut(host)
        self._remove(host)

    def cut(self, host: str) -> None:
        """Cut the host's cable, at the bridge: it still has its address, and nobody tells it that all is lost."""
        _run("ip", "link", "set", self._device(host), "down")

    def mend(self, host: str) -> None:
        """Put the cable back. A host that was given up meanwhile ends its Ray, and starts it anew by itself."""
        _run("ip", "link", "set", self._device(host), "up")

    def slow(self, host: str, milliseconds: int) -> None:
        """Delay what the host receives; 0 takes the delay off."""
        device = self._device(host)
        if milliseconds:
            try:
                _run("tc", "qdisc", "replace", "dev", device, "root", "netem", "delay", f"{milliseconds}ms")
            except TestbedError as error:
                raise TestbedError(
                    f"{error} (slow needs a kernel with netem: CONFIG_NET_SCH_NETEM)"
                ) from None
        else:
            _run("tc", "qdisc", "delete", "dev", device, "root")

    def inside(self, host: str) -> list[str]:
        """What to put before a command, so that it runs on the host, in this folder, with RAY_ADDRESS set."""
        environment = self._environment | {"RAY_ADDRESS": f"{self.head}:6379"}
        settings = [f"{key}={value}" for key, value in environment.items()]
        enter = ["nsenter", "-t", str(self._init(host)), "-m", "-u", "-i", "-n", "-p"]
        return [*enter, "env", "-u", "RAY_AUTH_TOKEN", "-C", os.getcwd(), *settings]

    def standing(self) -> list[str]:
        """The hosts that are there, by the kernel's word."""
        names = [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line]
        return [name.removeprefix(f"{self.name}-") for name in names if name.startswith(f"{self.name}-")]

    def processes(self, host: str) -> Iterator[tuple[int, str]]:
        """(process id on this machine, command line) of all that runs on the host."""
        for pid in _run("ip", "netns", "pids", self._device(host)).split():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                yield int(pid), command.decode(errors="replace")

    def _device(self, host: str) -> str:
        """The bridge's end of the host's cable, and the name of its namespace."""
        return f"{self.name}-{host}"

    def _plug_in(self, host: str) -> str:
        device, address = self._device(host), self._address(host)
        _run("ip", "netns", "add", device)
        _run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", device)
        _run("ip", "-n", device, "address", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", device, "link", "set", "eth0", "up")
        _run("ip", "link", "set", device, "master", self._bridge, "up")
        self._boot(host, address)
        return host

    def _address(self, host: str) -> str:
        """The next address, written where all hosts look names up."""
        if len(self._device(host)) > 15 or host == "br":
            raise TestbedError(
                f"{host} is no name for a host here; choose one of at most 15 characters with {self.name}-"
            )
        hosts = self._state / "hosts"
        last = hosts.read_text().splitlines()[-1].split()[0]
        address = self.head if host == "head" else f"{self.subnet}.{int(last.rsplit('.', 1)[1]) + 1}"
        with hosts.open("a") as file:
            file.write(f"{address} {host}\n")
        return address

    def _boot(self, host: str, address: str) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        ray += ["--node-ip-address", address, "--object-store-memory", "100000000"]
        if host == "head":
            ray += ["--head", "--port", "6379", "--num-cpus", "0"]
        else:
            ray += ["--address", f"{self.head}:6379", "--num-cpus", str(self.cpus)]
        apart = ["unshare", "-m", "-u", "-i", "-p", "--fork", "--kill-child", "--mount-proc"]
        init = ["bash", "-c", INIT, "init", str(self._state), host, self._shared]
        with (self._state / f"{host}.log").open("wb") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", self._device(host), *apart, *init, *ray],
                env={k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"} | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_ray(self, host: str) -> None:
        log, until = self._state / f"{host}.log", time.monotonic() + START_S
        while "Ray runtime started" not in (said := log.read_text(errors="replace")):
            if time.monotonic() > until:
                raise TestbedError(f"no Ray on {host} after {START_S:.0f} s: {said[-500:]!r}")
            time.sleep(0.1)

    def _init(self, host: str) -> int:
        """The process that is number 1 on the host."""
        if host not in self.standing():
            raise TestbedError(f"there is no {host}; there are {', '.join(self.standing()) or 'none'}")
        for pid, _ in self.processes(host):
            with contextlib.suppress(OSError):
                if "\nNSpid:\t" + f"{pid}\t1\n" in Path(f"/proc/{pid}/status").read_text():
                    return pid
        raise TestbedError(f"nothing runs on {host}")

    def _remove(self, host: str) -> None:
        while pids := [pid for pid, _ in self.processes(host)]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if Path("/sys/class/net", self._device(host)).exists():
            _run("ip", "link", "delete", self._device(host))
        _run("ip", "netns", "delete", self._device(host))


def _run(*command: str) -> str:
    """What the command printed; its complaint, in one line, where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TestbedError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def main() -> None:
    """The command line: one verb, on the testbed of the given name."""
    arguments, command = _parsed(sys.argv[1:])
    shared = tuple(Path(folder) for folder in arguments.share)
    testbed = Testbed(arguments.hosts, arguments.cpus, name=arguments.name, shared=shared)
    verb, host = arguments.verb, arguments.host
    try:
        if verb in ("up", "down"):
            getattr(testbed, verb)()
        elif verb == "exec":
            sys.exit(subprocess.run([*testbed.inside(host), *command], check=False).returncode)
        elif verb == "slow":
            testbed.slow(host, arguments.milliseconds)
        else:
            getattr(testbed, verb)(host)
    except TestbedError as error:
        sys.exit(f"testbed: {error}")
    print(f"testbed: {' '.join(testbed.standing()) or 'nothing left'}")


def _parsed(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and for exec the command after ``--``."""
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="python -m cluster.testbed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--name", default="tb", help="which testbed, where there are several")
    parser.add_argument(
        "--share", action="append", default=[], metavar="DIR", help="a folder below /tmp to share"
    )
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of a worker, for up and add")
    parser.add_argument("--hosts", type=int, default=2, help="workers beside the head, for up")
    parser.add_argument("verb", choices=["up", "down", "exec", "add", "kill", "cut", "mend", "slow"])
    parser.add_argument("host", nargs="?", help="for all verbs but up and down")
    parser.add_argument("milliseconds", nargs="?", type=int, help="for slow")
    arguments = parser.parse_args(words[:cut])
    if (arguments.host is None) != (arguments.verb in ("up", "down")):
        parser.error(f"{arguments.verb} takes {'no host' if arguments.host else 'a host'}")
    if (arguments.milliseconds is None) == (arguments.verb == "slow"):
        parser.error("slow takes milliseconds, and nothing else does")
    if arguments.verb == "exec" and not words[cut + 1 :]:
        parser.error("exec takes a command after --")
    return arguments, words[cut + 1 :]


if __name__ == "__main__":
    main()
