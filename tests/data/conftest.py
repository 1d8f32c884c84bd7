import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def stored() -> Callable[[str], Path]:
    """Find real data below WEIGHTBANK_DATA, or beside the repository; skip the test without."""
    place = os.environ.get("WEIGHTBANK_DATA")
    root = Path(place) if place else Path(__file__).parents[3] / "shared" / "data"

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no real data: {name} is not below WEIGHTBANK_DATA")
        return root / name

    return find
