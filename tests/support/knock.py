"""Everything that can be asked of a Ray over the network, asked of every given port, with a token or without.

    python -m tests.support.knock ADDRESS MARK PORT... < TOKEN      an empty TOKEN: without

MARK is the file that a submitted job creates. Prints a JSON list of [port, question, answer]; an answer is an HTTP status,
the name of a gRPC status, or "refused" where nothing listens.
"""

from __future__ import annotations

import http.client
import importlib
import json
import pkgutil
import re
import socket
import sys
from collections.abc import Iterator

import grpc

HTTP_S = 60.0
GRPC_S = 5.0
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x00"
"""ServerReflectionRequest(list_services="")."""
UNLISTED = (
    *(f"/ray.rpc.ObjectManagerService/{method}" for method in ("Push", "Pull")),
    "/ray.rpc.syncer.RaySyncer/StartSync",
)
"""Methods of Ray for which its Python package has no description."""
JOBS = ("/api/job_agent/jobs/", "/api/jobs/")
READS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/Pull",
)
"""Methods that change nothing: with the token only these are called."""

Answer = tuple[int, str, str]


def knock(address: str, port: int, token: str, mark: str) -> Iterator[Answer]:
    """All answers of one port."""
    try:
        socket.create_connection((address, port), GRPC_S).close()
    except OSError:
        yield port, "connect", "refused"
        return
    spoken = list(_by_http(address, port, token, mark))
    yield from spoken or _by_grpc(address, port, token)


def _by_http(address: str, port: int, token: str, mark: str) -> Iterator[Answer]:
    """Submit a job in both ways, and read what may be public; nothing where the port does not speak HTTP."""
    job = json.dumps({"entrypoint": f"touch {mark}"})
    for method, path in (("GET", "/"), ("GET", "/metrics"), *(("POST", path) for path in JOBS)):
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection(address, port, timeout=HTTP_S)
        try:
            connection.request(method, path, job if method == "POST" else None, headers)
            yield port, f"{method} {path}", str(connection.getresponse().status)
        except TimeoutError:
            yield port, f"{method} {path}", "no answer"
        except (http.client.HTTPException, OSError):
            return
        finally:
            connection.close()


def _by_grpc(address: str, port: int, token: str) -> Iterator[Answer]:
    """Call every known method with an empty message; methods that the port does not have are left out."""
    metadata = [("node_id", "0" * 56)]  # a RaySyncer of Ray 2.60 ends its process where this is missing
    metadata += [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in READS if token else sorted(_methods()):
            answer = _call(channel, method, metadata)
            if answer != "UNIMPLEMENTED":
                yield port, method, answer
        for service in _services(channel) - {method.split("/")[1] for method in _methods()}:
            yield port, f"/{service}", "not known to this test"


def _call(channel: grpc.Channel, method: str, metadata: list[tuple[str, str]]) -> str:
    try:
        list(
            channel.stream_stream(method)(iter([b""]), timeout=GRPC_S, metadata=metadata)
        )  # calls unary methods too
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _services(channel: grpc.Channel) -> set[str]:
    """The services that the port itself says it has; none where it does not say."""
    try:
        (said,) = channel.stream_stream(REFLECTION)(iter([LIST_SERVICES]), timeout=GRPC_S)
    except (grpc.RpcError, ValueError):
        return set()
    return {name.decode() for name in re.findall(rb"[a-z]+(?:\.\w+)+", said)}


def _methods() -> set[str]:
    """Every method that Ray's package describes, and those of gRPC itself."""
    import ray.core.generated as generated

    found = {REFLECTION, "/grpc.health.v1.Health/Check", "/grpc.channelz.v1.Channelz/GetServers", *UNLISTED}
    for module in pkgutil.iter_modules(generated.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"{generated.__name__}.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def main() -> None:
    """Knock at every port of the command line."""
    address, mark, *ports = sys.argv[1:]
    token = sys.stdin.read().strip()
    print(json.dumps([answer for port in ports for answer in knock(address, int(port), token, mark)]))


if __name__ == "__main__":
    main()
