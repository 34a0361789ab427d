"""One way to start a job: a YAML file plus flags, one line an error, exit code 2 for what the user can mend.

A preset has a section per job (``align:``, ``train:``, ...); a job reads its own section and leaves the others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jsonargparse
import yaml

from facerec import storage
from facerec.errors import ConfigError, FacerecError

C = TypeVar("C")

SECTIONS = ("align", "train", "embed", "evaluate", "report")


def main(
    section: str, config_class: type[C], run: Callable[[C], object], argv: list[str] | None = None
) -> None:
    """Parse flags into ``config_class`` and run; print one line and leave with 2 on what the user can mend.

    ``section`` is this job's name in a preset, or "pipeline" for the job that takes them all.
    """
    try:
        run(parse(section, config_class, sys.argv[1:] if argv is None else argv))
    except FacerecError as error:
        print(f"{section}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{section}: interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(130)


def parse(section: str, config_class: type[C], argv: list[str]) -> C:
    """Flags and YAML to a frozen dataclass; raises ConfigError with one line."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=f"jobs/{section}.py", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; flags given after it win")
    parser.add_class_arguments(config_class)
    try:
        namespace = parser.parse_args(_inline_presets(section, argv))
        values = parser.instantiate(namespace).as_dict()
    except (jsonargparse.ArgumentError, ValueError) as error:
        raise ConfigError(f"{' '.join(str(error).split())}; --help lists every flag") from None
    values.pop("config")
    return config_class(**values)


def _inline_presets(section: str, argv: list[str]) -> list[str]:
    """Replace ``--config FILE`` by the text of this job's section of that file."""
    flat: list[str] = []
    for argument in argv:
        if argument.startswith("--config="):
            flat += argument.split("=", 1)
        else:
            flat.append(argument)
    for position, argument in enumerate(flat[:-1]):
        if argument == "--config":
            flat[position + 1] = json.dumps(_own_section(section, flat[position + 1]))
    return flat


def _own_section(section: str, uri: str) -> dict[str, Any]:
    try:
        preset = yaml.safe_load(storage.read_bytes(uri)) or {}
    except FileNotFoundError:
        raise ConfigError(f"--config {uri}: no such file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {uri} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(preset, dict):
        raise ConfigError(f"--config {uri} holds a {type(preset).__name__}; it needs keys and values")
    if section == "pipeline" or not preset.keys() & set(SECTIONS):
        return preset
    if unknown := preset.keys() - set(SECTIONS):
        raise ConfigError(
            f"--config {uri} has unknown section {sorted(unknown)[0]!r}; sections are {', '.join(SECTIONS)}"
        )
    return dict(preset.get(section) or {})
