"""From what a user writes to the medium it names."""

from pathlib import Path

from weightbank.errors import StoreError
from weightbank.store.media import Directory, Medium
from weightbank.store.memory import Memory


def medium_of(where: str | Path | Medium) -> Medium:
    """A directory, ":memory:", a device-DAX node such as `/dev/dax0.0`, or a `Medium` as it is."""
    if not isinstance(where, (str, Path)):
        if not isinstance(where, Medium):
            raise StoreError(
                f"a {type(where).__name__} came for the place of the rows; wanted a directory or ':memory:'"
            )
        return where
    if where == "":
        raise StoreError("an empty text came for the place of the rows; wanted a directory or ':memory:'")
    if str(where) == ":memory:":
        return Memory()
    path = Path(where)
    if path.is_char_device():
        from weightbank.store.dax import DaxDevice

        return DaxDevice(path)
    return Directory(path)
