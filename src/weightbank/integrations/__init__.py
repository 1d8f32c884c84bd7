"""Inside other people's training loops: torch's `AveragedModel`, Lightning, the Hugging Face `Trainer`.

`weightbank.integrations.lightning` and `weightbank.integrations.huggingface` import those libraries; nothing else does.
"""

from weightbank.integrations.averaged import AveragedModel
from weightbank.integrations.recording import Recording

__all__ = ["AveragedModel", "Recording"]
