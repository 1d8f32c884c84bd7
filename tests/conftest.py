from collections.abc import Iterator

import pytest
from jaxtyping import config, install_import_hook

hook = install_import_hook("weightbank", "typecheck.checked")


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Annotations are not checked, as outside tests: for what the library itself says of a wrong type."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
