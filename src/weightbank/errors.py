"""Every error this library raises on purpose: what came, what was wanted, what to do."""


class WeightbankError(Exception):
    """The base of all errors below; catch it to catch them all."""


class LayoutError(WeightbankError, ValueError):
    """A vector, a model or a stored file does not have the weights that were expected."""


class NonFiniteError(WeightbankError, ValueError):
    """A NaN or an infinity arrived where a finite number is needed; nothing was stored."""


class DataError(WeightbankError, ValueError):
    """A data source is empty, has the wrong shape, or changed between two passes."""


class FormatError(WeightbankError, ValueError):
    """A number format cannot be built, parsed, or applied to this tensor."""


class StoreError(WeightbankError):
    """A stored posterior cannot be created, opened, read or written."""


class CorruptError(StoreError):
    """Stored bytes are not what was written: foreign, truncated or garbled."""


class LockedError(StoreError):
    """Another process is writing here."""


class ConflictError(StoreError):
    """Somebody else has saved here since this was read; nothing was overwritten."""


class CapacityError(StoreError):
    """The disk, the device or the memory budget is too small; nothing was half written."""


class OverwrittenError(StoreError):
    """The rows asked for have left the window that is kept."""


class ResumeError(WeightbankError):
    """A resumed run does not match what it recorded before."""


class DivergedError(WeightbankError, ArithmeticError):
    """The training loss became NaN or infinite."""


class CurvatureError(WeightbankError, ValueError):
    """A task whose curvature cannot be had this way: an unknown loss, a random model, a layer without a rule."""


class PrecisionError(WeightbankError, ValueError):
    """A choice of formats contradicts itself, or does not fit this model or this optimizer."""
