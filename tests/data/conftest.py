import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def stored() -> Callable[[str], Path]:
    """The path of real data below WEIGHTBANK_DATA, else in the folder shared/data beside the repository."""
    place = os.environ.get("WEIGHTBANK_DATA")
    root = Path(place) if place else Path(__file__).parents[3] / "shared" / "data"

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no real data: {name} is not below WEIGHTBANK_DATA")
        return root / name

    return find
