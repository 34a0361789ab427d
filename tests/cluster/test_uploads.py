"""What leaves the user's folder for a cluster: the code, and nothing that happens to lie beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import _zip_files

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CODE = {
    str(path.relative_to(ROOT))
    for folder in ("facerec", "jobs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".html", ".json", ".yaml")
}
SECRETS = (
    *(
        ".env",
        ".envrc",
        "id_ed25519",
        ".ssh/id_rsa",
        ".aws/credentials",
        ".git/config",
        ".netrc",
        ".venv/a.py",
    ),
    *("people.csv", "out/run.json", "work/report.json", "photos/anna/1.JPG", "IMG_1.HEIC", "faces.PARQUET"),
    *(
        "notes.py",
        "secrets.yaml",
        "tests/conftest.py",
        "docs/privacy.md",
        "build/a.py",
        "Makefile",
        "...",
        "..x/a.py",
    ),
    *("facerec/.env", "facerec/id_ed25519", "facerec/1.JPG", "facerec/people.csv", "facerec/run.json"),
    *("facerec/photos/1.JPG", "facerec/photos/a.py", "facerec/.ssh/id_rsa", "facerec/__pycache__/a.pyc"),
    *(
        "facerec/training/.env",
        "facerec/training/id_ed25519",
        "facerec/training/people.csv",
        "facerec/models/a.pt",
    ),
    *("facerec/training/run.json", "facerec/models/weights.SAFETENSORS", "facerec/evaluation/report.json"),
    *("facerec/models/anna/1.JPG", "facerec/models/anna/a.py", "facerec/training/report.html"),
    *(
        "jobs/.env",
        "jobs/id_ed25519",
        "jobs/1.JPG",
        "jobs/people.csv",
        "jobs/secrets.yaml",
        "jobs/report.html",
    ),
    *("jobs/presets/.env", "jobs/presets/people.csv", "jobs/presets/1.JPG", "jobs/presets/anna/a.yaml"),
    *("jobs/presets/credentials", "jobs/photos/1.JPG", "jobs/__pycache__/a.pyc"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the code in a folder in which somebody works, with all that such a folder may hold."""
    for name in CODE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in SECRETS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        assert name not in CODE
        (tmp_path / name).write_text("secret")
    return tmp_path


@pytest.mark.parametrize("gitignore", [False, True])
def test_a_submitted_job_takes_the_code_and_nothing_else(folder: Path, gitignore: bool) -> None:
    """By Ray's own packing. ``gitignore`` is whether it honours that file too, as it does unless told otherwise."""
    shutil.copy(ROOT / ".gitignore", folder / ".gitignore")
    excludes = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())["excludes"]
    package = folder.parent / "package.zip"
    _zip_files(str(folder), excludes, str(package), include_gitignore=gitignore)
    assert set(zipfile.ZipFile(package).namelist()) == CODE


def test_a_preset_of_the_users_own_travels(folder: Path) -> None:
    (folder / "jobs/presets/ours.yaml").write_text("steps: 3\n")
    excludes = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())["excludes"]
    package = folder.parent / "package.zip"
    _zip_files(str(folder), excludes, str(package), include_gitignore=True)
    assert set(zipfile.ZipFile(package).namelist()) == CODE | {"jobs/presets/ours.yaml"}


def in_image(name: str) -> bool:
    """Docker's rule: patterns are from the root, match a path or a folder above it, and the last match counts."""
    parts, sent = name.split("/"), True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").split("/")
        above = zip(parts, pattern, strict=False)
        if len(parts) >= len(pattern) and all(fnmatchcase(part, glob) for part, glob in above):
            sent = line.startswith("!")
    return sent


def test_the_image_takes_the_code_and_what_installs_it(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    code_too = {"facerec/photos/a.py"}  # by its suffix, in whichever folder of the package
    assert {name for name in files if in_image(name)} == CODE | code_too
    for name in (
        "constraints.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "cluster/ray.env",
        "facerec/py.typed",
    ):
        assert in_image(name)


@pytest.mark.parametrize(
    "name, files",
    [
        ("aws", {"cluster/ray.env", "cluster/spot.py"}),
        (
            "onprem",
            {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "cluster/ray.env"},
        ),
    ],
)
def test_ray_up_copies_named_files_and_no_folder(name: str, files: set[str]) -> None:
    """A folder would need a filter, and rsync's filters as Ray passes them can only exclude."""
    config = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    sources = set(config["file_mounts"].values())
    assert sources == files | {"~/.ray/auth_token"}
    assert all((ROOT / source).is_file() for source in files)
    assert not config.get("cluster_synced_files")


def test_what_ray_up_copies_is_enough_to_install_the_environment(tmp_path: Path) -> None:
    """Of own machines: the packages of pyproject.toml, without the code, which each job brings."""
    pytest.importorskip("setuptools", reason="setuptools is not installed here")
    config = yaml.safe_load((CLUSTER / "onprem.yaml").read_text())
    for target, source in config["file_mounts"].items():
        if target.startswith("~/facerec/"):
            copy = tmp_path / target.removeprefix("~/facerec/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, copy)
    build = "import setuptools.build_meta as backend; print(backend.build_editable('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        assert "Requires-Dist: ray[data,default,train]" in wheel.read(metadata).decode()
