"""A plain file for a device-DAX node and a folder for sysfs: a device's code path, no claim about hardware."""

import os
from pathlib import Path

from weightbank.store.dax import DaxDevice

MIB = 1 << 20
AREA, COPIES = 2 * MIB, (4096, 1 * MIB)


class Emulated:
    """A blank device of `size` bytes."""

    def __init__(self, folder: Path, size: int = 64 * MIB) -> None:
        self.node, self.sysfs = folder / "dax0.0", folder / "sys"
        folder.mkdir(exist_ok=True)
        self.node.touch()
        os.truncate(self.node, size)
        self.describe(size)

    def describe(self, size: int | str, align: int = 2 * MIB) -> None:
        """Let sysfs tell this size and alignment."""
        describe(self.sysfs, "0:0", size, align)

    def device(self, *, erase: bool = False) -> DaxDevice:
        """Another view of the same bytes, as another process would have it."""
        return DaxDevice(self.node, sysfs=self.sysfs, erase=erase)

    def overwrite(self, offset: int, data: bytes) -> None:
        """Change bytes behind everybody's back."""
        with open(self.node, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def peek(self, offset: int, length: int) -> bytes:
        """Look at bytes behind everybody's back."""
        with open(self.node, "rb") as file:
            file.seek(offset)
            return file.read(length)


def describe(sysfs: Path, numbers: str, size: int | str, align: int = 2 * MIB) -> None:
    """Write the sysfs entry of the device with these major:minor numbers."""
    entry = sysfs / numbers
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "size").write_text(f"{size}\n")
    (entry / "align").write_text(f"{align}\n")


def contents(device: DaxDevice) -> dict[str, bytes]:
    """All bytes in use of all parts."""
    return {name: device.read(name, 64 * MIB) for name in device.sizes()}


def address(device: DaxDevice, name: str) -> int:
    """Where a part lies in this process's memory."""
    return int(device.used(name).ctypes.data)
