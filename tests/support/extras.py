"""What an installation may lack."""

from __future__ import annotations

import pytest

from facerec.models.engine import installed


def needs_openvino() -> None:
    """Skip where there is none; `make install` leaves it out on other machines than x86-64 alone."""
    if not installed():
        pytest.skip("the extra facerec[openvino] is not installed")
