"""The session: its token, whose Ray it is, and that an error found by a worker reaches the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
import ray.train

from facerec.errors import ConfigError, StorageError
from facerec.session import alone, private_folder, ray_session


@pytest.mark.usefixtures("ray_local")
def test_a_fault_of_the_users_that_a_worker_finds_is_the_same_one_line() -> None:
    def refused(rows: pa.Table) -> pa.Table:
        raise StorageError(f"s3://faces/{rows.num_rows}: AccessDenied")

    with pytest.raises(StorageError, match=r"^s3://faces/1: AccessDenied$"), ray_session():
        ray.data.from_items([1]).map_batches(refused, batch_format="pyarrow").materialize()


@pytest.mark.usefixtures("ray_local")
def test_so_is_one_of_an_actors_constructor() -> None:
    class Refused:
        def __init__(self) -> None:
            raise ConfigError("openvino is not installed")

        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows

    with pytest.raises(ConfigError, match=r"^openvino is not installed$"), ray_session():
        ray.data.from_items([1]).map_batches(
            Refused, compute=ray.data.ActorPoolStrategy(size=1)
        ).materialize()


@pytest.mark.usefixtures("ray_local")
def test_and_so_is_what_ray_train_says_of_its_last_attempt() -> None:
    said = "Training failed due to worker errors:\nTraceback\nfacerec.errors.StorageError: run/x cannot be written: full\n"
    with pytest.raises(StorageError, match=r"^run/x cannot be written: full$"), ray_session():
        raise ray.train.TrainingFailedError(said)
    with pytest.raises(RuntimeError, match="a bug"), ray_session():
        raise RuntimeError("a bug")


@pytest.mark.usefixtures("ray_local")
def test_a_ray_that_was_there_before_may_be_joined_by_others() -> None:
    with ray_session():
        assert not alone()


TWICE = """
import json, os, sys, urllib.error, urllib.request
import ray
from facerec.session import alone, ray_session

def status(token):
    request = urllib.request.Request(f"http://{url}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code

def settings():
    return [os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")]

before, sessions = settings(), []
for _ in range(2):
    with ray_session(1):
        url = ray.get_runtime_context().worker.node.webui_url
        mode, token = settings()
        worked = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()) == token
        sessions.append([alone(), mode, token, worked, status(""), status("0" * 64), status(token)])
print(json.dumps({"sessions": sessions, "restored": settings() == before and not alone()}))
"""


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "0" * 64}])
def test_a_ray_that_a_job_starts_is_its_own_and_requires_a_token_of_its_own(
    given: dict[str, str], tmp_path: Path
) -> None:
    """In a process of its own, with an empty home folder. A token that was set before belongs to another cluster."""
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        env=environment | {"HOME": str(tmp_path)} | given,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    tokens = {token for _, _, token, *_ in seen["sessions"]}
    assert len(tokens) == 2
    assert all(len(token) == 64 and token not in given.values() for token in tokens)
    for its_own, mode, _, worked, *statuses in seen["sessions"]:
        assert (its_own, mode, worked, statuses) == (True, "token", True, [401, 403, 200])
    assert seen["restored"]
    assert list(tmp_path.iterdir()) == []
    assert done.stderr.count("RAY_AUTH_MODE=disabled is ignored") == (2 if given else 0)
    assert "authentication" not in done.stderr.lower()


def test_rays_files_are_in_a_folder_that_only_this_user_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = Path(private_folder())
    assert first == tmp_path / f"ray-{os.getuid()}"
    assert first.stat().st_mode & 0o777 == 0o700
    assert private_folder() == str(first)


@pytest.mark.parametrize("taken", ["open", "link", "file", "another user's"])
def test_a_folder_that_somebody_else_has_made_for_ray_is_not_used(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name = tmp_path / f"ray-{os.getuid()}"
    if taken == "link":
        (tmp_path / "theirs").mkdir()
        name.symlink_to(tmp_path / "theirs")
    elif taken == "file":
        name.touch()
    else:
        name.mkdir(mode=0o777 if taken == "open" else 0o700)
        name.chmod(0o777 if taken == "open" else 0o700)
    if taken == "another user's":
        if os.getuid() != 0:
            pytest.skip("only root can make a folder of another user")
        os.chown(name, 65534, 65534)
    chosen = Path(private_folder())
    assert chosen != name
    assert chosen.is_dir()
    assert chosen.stat().st_mode & 0o777 == 0o700
    assert chosen.stat().st_uid == os.getuid()
