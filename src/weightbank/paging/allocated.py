"""How much memory this process really holds, by the count of its C library."""

import ctypes
import gc

FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)
"""Of glibc's struct mallinfo2, in its order."""


def allocated() -> int | None:
    """Bytes that glibc's allocator has given out in this process and not taken back; None with another C library."""
    find = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if find is None:
        return None

    class Counts(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)

    find.restype = Counts
    gc.collect()
    counts = find()
    return int(counts.uordblks) + int(counts.hblkhd)
