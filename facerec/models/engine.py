"""OpenVINO, which runs networks on CPUs, without what it would tell of its users."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def installed() -> bool:
    """Whether it is there at all; looked up without importing it."""
    return importlib.util.find_spec("openvino") is not None


def openvino() -> Any:
    """The library. To import it as it comes tells an analytics service so, under an id kept in the home folder.

    Without its package ``openvino_telemetry`` it takes stubs of its own that send nothing; so the package is hidden.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it is an ImportError from here on
    import openvino as library

    return library
