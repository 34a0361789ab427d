"""One way to start a job: a YAML file plus flags, one line an error, exit code 2 for what the user can mend.

A job that can say what it would do hands its plan to ``main``, and gets ``--dry-run`` for it. A preset has a section per job (``align:``, ``train:``, ...); a job reads its own section and leaves the others.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

import jsonargparse
import yaml

from facerec import storage
from facerec.errors import ConfigError, FacerecError

C = TypeVar("C")
Plan = Mapping[str, object]
"""What a job would do, by name, for people: found by reading alone, without Ray."""

SECTIONS = ("align", "train", "embed", "evaluate", "report", "identify", "erase")
WHOLE = ("pipeline", "experiment")
"""Jobs that take a whole file: other jobs' settings are part of theirs."""


def main(
    section: str,
    config_class: type[C],
    run: Callable[[C], object],
    argv: list[str] | None = None,
    *,
    plan: Callable[[C], Plan] | None = None,
) -> None:
    """Parse flags into ``config_class`` and run; print one line and leave with 2 on what the user can mend.

    ``section`` is this job's name in a preset, or "pipeline" for the job that takes them all, or a job and a verb
    ("align inspect"). A required field that is not keyword-only is an argument without a flag. With ``--dry-run``
    the ``plan`` is printed in place of the run; it must write nothing.
    """
    try:
        config, dry = _parsed(section, config_class, sys.argv[1:] if argv is None else argv, plan is not None)
        if dry and plan:
            _show(section, plan(config))
        else:
            run(config)
    except FacerecError as error:
        print(f"{section}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{section}: interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(130)


def parse(section: str, config_class: type[C], argv: list[str]) -> C:
    """Flags and YAML to a frozen dataclass; raises ConfigError with one line."""
    return _parsed(section, config_class, argv, can_plan=False)[0]


def _show(section: str, plan: Plan) -> None:
    width = max(map(len, plan))
    for name, value in plan.items():
        print(f"{section}: {name:{width}}  {f'{value:,}' if isinstance(value, int) else value}")
    print(f"{section}: a dry run; nothing was started or written", flush=True)


def _parsed(section: str, config_class: type[C], argv: list[str], can_plan: bool) -> tuple[C, bool]:
    """The settings, and whether only the plan is asked for."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    job, _, verb = section.partition(" ")
    parser = jsonargparse.ArgumentParser(
        prog=f"jobs/{job}.py {verb}".strip(), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file; flags given after it win")
    if can_plan:
        parser.add_argument(
            "--dry-run", action="store_true", help="print what would be done, and touch nothing"
        )
    parser.add_class_arguments(config_class, as_positional=True)
    try:
        namespace = parser.parse_args(_inline_presets(section, argv))
        values = parser.instantiate(namespace).as_dict()
    except (jsonargparse.ArgumentError, ValueError) as error:
        raise ConfigError(f"{' '.join(str(error).split())}; --help lists every flag") from None
    values.pop("config")
    dry = can_plan and values.pop("dry_run")
    _require_addresses(values)
    return config_class(**values), dry


def _require_addresses(values: dict[str, Any], prefix: str = "--") -> None:
    """Raise ConfigError, which names the flag, if a setting is an address that is not supported."""
    for name, value in values.items():
        if is_dataclass(value):
            _require_addresses(vars(value), f"{prefix}{name}.")
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(text, str) and name != "identity" and storage.is_foreign(text):
                raise ConfigError(f"{storage.not_supported(text)} ({prefix}{name})")


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


class _Loader(yaml.SafeLoader):
    """YAML that means one thing: a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if again := next((key for key in keys if keys.count(key) > 1 and key != "<<"), None):
            raise yaml.constructor.ConstructorError(None, None, f"{again} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _require_plain(uri: str, value: Any, at: str = "") -> None:
    """Raise ConfigError, which names the place, unless a value can be a setting: JSON has no dates, and text as keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(
                    f"--config {uri} has the key {key!r}{f' below {at}' if at else ''}, which YAML reads as no text; put it in quotes"
                )
            _require_plain(uri, inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _require_plain(uri, inner, f"{at}[{number}]")
    elif not isinstance(value, str | int | float | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ConfigError(
            f"--config {uri} has {at}: {value}, which YAML reads as {type(value).__name__}; "
            "a text (in quotes), a finite number, true, false or null is needed"
        )


def _own_section(section: str, uri: str) -> dict[str, Any]:
    try:
        preset = yaml.load(storage.read_bytes(uri), _Loader) or {}
    except FileNotFoundError:
        raise ConfigError(f"--config {uri}: no such file") from None
    except ConfigError as error:
        raise ConfigError(f"{error} (--config)") from None
    except OSError as error:
        raise ConfigError(f"--config {uri} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a month 13 is a ValueError
        raise ConfigError(f"--config {uri} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(preset, dict):
        raise ConfigError(f"--config {uri} holds a {type(preset).__name__}; it needs keys and values")
    try:
        _require_plain(uri, preset)
    except RecursionError:
        raise ConfigError(f"--config {uri} has a value that contains itself") from None
    sections = {key for key in preset if key in SECTIONS and isinstance(preset[key], dict)}
    if section in WHOLE or not sections:  # a job may have a flag by a section's name: --report report.json
        return preset
    if unknown := preset.keys() - set(SECTIONS):
        raise ConfigError(
            f"--config {uri} has unknown section {sorted(unknown)[0]!r}; sections are {', '.join(SECTIONS)}"
        )
    return dict(preset.get(section) or {})
