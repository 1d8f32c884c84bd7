"""The published size rule of posteriors in non-volatile memory (Wood et al., HPEC 2021, arXiv 2202.10522).

Kept to reproduce the published table. The rule counts 12 bytes per weight and row where a float32 row takes 4, and its
table rounds up, so a "700 GB" row of it really holds about 233 GB; `plan` counts what lies on the disk.
"""

PAPER_MODELS = {"model_2conv2fc": 21_840, "model_2fc": 795_010, "model_3fc": 1_290_510, "model_4fc": 2_797_010}
"""The four networks of the table and their weights."""

PAPER_TARGETS = (1, 10, 100, 300, 700)
"""The sizes of the table, in GB of 10⁹ bytes."""

PAPER_UPDATES = 600
"""Rows per epoch: 60,000 examples in minibatches of 100."""


def paper_bytes(n: int, k: int) -> int:
    """The rule: bytes of a posterior over `n` weights with `k` rows are 12 n (k + 3) + 12."""
    return 12 * n * (k + 3) + 12


def paper_epochs(n: int, target_bytes: int, updates_per_epoch: int = PAPER_UPDATES) -> int:
    """The epochs of the table: ((target - 12) / 12 n - 3) / updates, rounded up, at least 1.

    >>> paper_epochs(2_797_010, 700 * 10**9)
    35
    """
    return max(1, -(-(target_bytes - 12 - 36 * n) // (12 * n * updates_per_epoch)))


def paper_table() -> dict[int, dict[str, int]]:
    """The published table: target in GB -> model -> epochs."""
    return {
        target: {name: paper_epochs(n, target * 10**9) for name, n in PAPER_MODELS.items()} for target in PAPER_TARGETS
    }
