"""Rankings and ways of spending write cycles by name, as `cim` takes them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from weightbank import curvature
from weightbank.cim import (
    MENU,
    Cells,
    Retraining,
    WriteVerify,
    by_cell,
    by_significance,
    by_weight,
    compensate,
    first_derivative,
    graded,
    rank,
    read_first,
)
from weightbank.cim.policies import Policy, Spend
from weightbank.cli.cim_network import Network
from weightbank.cli.console import note
from weightbank.errors import CurvatureError, DataError
from weightbank.task import Task
from weightbank.types import Flat

CURVATURES: Mapping[str, Callable[..., Flat]] = MappingProxyType(
    {
        name: getattr(curvature, name)
        for name in ("ggn_sampled", "ggn", "backprop", "fisher", "fisher_empirical", "hutchinson")
    }
)
"""Scores in loss per squared weight."""

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "weights": by_weight,
        "top cells": by_significance,
        "cells": by_cell,
        "graded": graded,
        "read first": partial(read_first, tolerances=MENU[1:]),
        "compensate": compensate,
    }
)
"""Ways to spend write cycles by a curvature."""

BASELINES = ("random", "magnitude", "first derivative", "published")
METHODS = (*BASELINES, *POLICIES)

IN_SITU = "in situ"
"""Retraining on the chip: measured by sweeps only if it is named, since each of its chips is trained."""

FEW = 6_000
"""Training examples behind the published ranking, unless told otherwise: its cost is several passes."""


@dataclass
class Scores:
    """The scores of one network, each computed when first asked for; those in its file are taken from there."""

    network: Network
    images: int | None = None
    batch_size: int | None = None
    seed: int = 0
    found: dict[str, Flat] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The network's."""
        return self.network.task

    def of(self, name: str) -> Flat:
        """A curvature by name, shape (P,), in main memory; `DataError` for another name."""
        if name not in CURVATURES:
            raise DataError(f"no curvature is called '{name}'; there are: {', '.join(CURVATURES)}")
        if name not in self.found:
            kept = self.network.scores
            self.found[name] = kept[name] if name in kept else self.computed(name)
        return self.found[name]

    def computed(self, name: str) -> Flat:
        """The same without a look into the file."""
        options: dict[str, Any] = {"images": self.images, "batch_size": self.batch_size}
        if name == "backprop" and self.images is None:
            options["images"] = FEW
        generator = torch.Generator().manual_seed(self.seed)
        return CURVATURES[name](self.task, generator=generator, **options).to("cpu")


def policy_of(name: str) -> Policy:
    """A way to spend write cycles by name; `DataError` for another."""
    plain = name.replace("-", " ")
    if plain not in POLICIES:
        raise DataError(f"no policy is called '{name}'; there are: {', '.join(POLICIES)}")
    return POLICIES[plain]


def spend(name: str, cells: Cells, scores: Scores, which: str, process: WriteVerify | None) -> Spend:
    """One method by name: a baseline's order of weights, or a policy led by the curvature `which`."""
    if name == "random":
        generator = torch.Generator().manual_seed(scores.seed)
        return by_weight(cells, torch.randperm(cells.layout.size, generator=generator), process)
    if name == "magnitude":
        return by_weight(cells, rank(cells.relative), process)
    if name == "first derivative":
        return by_weight(cells, rank(first_derivative(scores.task) * cells.scale), process)
    if name == "published":
        return by_weight(cells, scores.of("backprop"), process)
    return policy_of(name)(cells, scores.of(which), process)


def methods(
    names: Iterable[str] | None,
    cells: Cells,
    scores: Scores,
    which: str,
    process: WriteVerify | None,
    retraining: str = "",
) -> dict[str, Spend | Retraining]:
    """Methods by name; without names all orders and policies that this network and device allow, and a note about the
    others. `retraining` is for "in situ".

    Raises `DataError` for another name, and whatever a method that was named raises.
    """
    chosen = [name.replace("-", " ") for name in names] if names else list(METHODS)
    unknown = [name for name in chosen if name not in (*METHODS, IN_SITU)]
    if unknown:
        raise DataError(f"no method is called '{unknown[0]}'; there are: {', '.join((*METHODS, IN_SITU))}")
    if retraining and IN_SITU not in chosen:
        raise DataError(f"--retraining {retraining} is for the method '{IN_SITU}'; add --method '{IN_SITU}'")
    found: dict[str, Spend | Retraining] = {}
    for name in chosen:
        try:
            if name == IN_SITU:
                found[name] = retraining_of(scores.task, cells, process, retraining)
                continue
            found[name] = spend(name, cells, scores, which, process)
        except (CurvatureError, DataError) as error:
            if names:
                raise
            note(f"without '{name}': {error}")
    return found


def retraining_of(task: Task, cells: Cells, process: WriteVerify | None, text: str) -> Retraining:
    """In-situ retraining as `--retraining` says, e.g. "lr=0.03,momentum=0.9,chips=10,steps=2000"."""
    kinds: dict[str, type] = {"lr": float, "momentum": float, "chips": int, "steps": int}
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            given[name.replace("lr", "learning_rate")] = kinds[name](value)
        except (KeyError, ValueError):
            raise DataError(f"--retraining {part}: wanted some of lr=0.003,momentum=0.0,chips=5,steps=1000") from None
    return Retraining(task, cells, process=process, **given)
