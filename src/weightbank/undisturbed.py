"""Read data and run modules without moving anybody's random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def undisturbed(*sources: Any, device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Put the global random state and the generators of some data loaders back afterwards.

    With `seed` all of them start from it inside, so what happens there repeats.
    """
    generators = list({id(g): g for source in sources for g in generators_of(source)}.values())
    states = [generator.get_state() for generator in generators]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if seed is not None:
            torch.manual_seed(seed)
            for generator in generators:
                generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def generators_of(source: Any) -> list[torch.Generator]:
    """The generators of a source of batches: its own, its sampler's, and the one inside its batch sampler."""
    sampler = getattr(source, "sampler", None)
    batches = getattr(source, "batch_sampler", None)
    inner = getattr(batches, "sampler", None)
    held = (getattr(part, "generator", None) for part in (source, sampler, batches, inner))
    return list({id(generator): generator for generator in held if isinstance(generator, torch.Generator)}.values())
