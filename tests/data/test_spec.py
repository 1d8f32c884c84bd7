import subprocess
import sys

import pytest
import torch

from weightbank.data import digits, load, mnist_family, parquet_images, spec
from weightbank.errors import DataError


def test_digits_is_the_embedded_set():
    assert torch.equal(load("digits").train[0], digits().train[0])


def test_each_kind_goes_to_its_reader_with_the_rest_of_the_text(monkeypatch):
    asked = []
    expected = digits()
    monkeypatch.setattr(
        spec,
        "READERS",
        {kind: lambda place, kind=kind: asked.append((kind, place)) or expected for kind in spec.READERS},
    )
    for kind in ("mnist", "idx", "parquet", "audio", "hub"):
        assert load(f"{kind}:C:/some/place") is expected
    assert asked == [(kind, "C:/some/place") for kind in ("mnist", "idx", "parquet", "audio", "hub")]


def test_the_kinds_are_the_readers_documented():
    assert spec.READERS["mnist"] is spec.READERS["idx"] is mnist_family
    assert spec.READERS["parquet"] is parquet_images


@pytest.mark.parametrize("text", ["", "mnist", "mnist:", "digits:8", "cifar:folder", "Digits", ":", "parquet:"])
def test_a_wrong_spec_is_answered_with_the_forms(text):
    with pytest.raises(DataError) as error:
        load(text)
    message = str(error.value)
    assert message.startswith(repr(text))
    assert all(
        form in message
        for form in ("digits", "mnist:FOLDER", "idx:FOLDER", "parquet:FOLDER", "audio:FOLDER", "hub:NAME")
    )


def test_importing_the_readers_imports_none_of_their_packages():
    code = "import sys, weightbank.data; print(sorted({'sklearn', 'pyarrow', 'PIL', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
