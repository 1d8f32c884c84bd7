import subprocess
import sys

import pytest

import weightbank


def test_every_public_name_is_there_and_listed() -> None:
    for name in weightbank.__all__:
        assert getattr(weightbank, name).__name__ == name
        assert name in dir(weightbank)


def test_each_name_is_said_once_to_readers_and_once_to_python() -> None:
    assert sorted(" ".join(weightbank._HOMES.values()).split()) == sorted(weightbank.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        weightbank.nothing


def test_importing_the_library_imports_neither_torch_nor_numba() -> None:
    code = "import weightbank, sys; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
