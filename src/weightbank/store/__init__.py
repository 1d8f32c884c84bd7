"""Where bytes live: row logs on files, memory or device-DAX, and fixed arrays in safetensors files."""

from weightbank.store.rows import RowLog

__all__ = ["RowLog"]
