"""The networks of an experiment: a table with one line of TOML for each, made into tasks, weights and importances."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from weightbank.cli.runs import make_task
from weightbank.data import load
from weightbank.errors import DataError, LayoutError
from weightbank.paging.experiments import Member
from weightbank.paging.importance import importance_of
from weightbank.store.arrays import load_arrays, save_arrays
from weightbank.task import Task
from weightbank.training import epochs
from weightbank.types import Flat
from weightbank.zoo import PAGE_NETWORKS, PageNetwork, build, read_page_vector

LIMIT = 1 << 20
"""The most bytes of a table."""
EQUAL = 0.01
"""Importance of each weight where nothing is known, in loss per squared weight: about the mean of trained networks this
small (0.0025 for the published one on MNIST, 0.036 on CIFAR-10)."""
NAME = re.compile(r"[\w-]{1,100}")


@dataclass(frozen=True)
class Network:
    """One line of a table: `spoken = { model = "pages_spoken", data = "audio:recordings" }`.

    Args:
        name: what the network is called, the key of its line.
        model: its name in the zoo.
        data: what it is trained and tested on, as `weightbank.data.load` takes it; without data it is held at the
            weights it has.
        weights: a published `.npz` file of a page network; without, the network is trained once and kept.
        importance: an array of that file, or "fisher", measured on the data, or "equal".
        epochs: of training, where it has no weights.
        rate: the highest learning rate of Adam in that training.
        seed: of the first weights and the order of the data.
    """

    name: str
    model: str
    data: str | None = None
    weights: str | None = None
    importance: str | None = None
    epochs: int = 30
    rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise DataError(
                f"a network is called {self.name!r}; wanted letters, digits, - and _, which name a file, too"
            )
        if self.data is None and self.weights is None:
            raise DataError(f"network '{self.name}' has neither data nor weights; give data=, weights= or both")
        if self.weights is not None and self._described is None:
            raise DataError(
                f"network '{self.name}': published weights are of page networks, and {self.model!r} is none; leave "
                f"weights out, or take one of {', '.join(f'pages_{name}' for name in PAGE_NETWORKS)}"
            )

    @property
    def _described(self) -> PageNetwork | None:
        return PAGE_NETWORKS.get(self.model.removeprefix("pages_")) if self.model.startswith("pages_") else None

    def member(self, cache: Path) -> Member:
        """Read, or train, everything; trained weights are kept in `cache` as NAME.safetensors."""
        if self.data is None:
            task = Task(self.name, build(self.model), F.cross_entropy, [], [])
        else:
            task = make_task(self.model, load(self.data), seed=self.seed, batch_size=100)
            task.name = self.name
        if self.weights is not None and self._described is not None:
            task.layout.assign(task.model, read_page_vector(self.weights, self._described))
        else:
            trained(self, task, cache)
        return Member(task, self._importance(task), held=self.data is None)

    def _importance(self, task: Task) -> Flat:
        wanted = self.importance or ("fisher" if self.data is not None else "equal")
        if wanted == "equal":
            return torch.full((task.layout.size,), EQUAL)
        if self.weights is not None and self._described is not None and wanted != "fisher":
            return read_page_vector(self.weights, self._described, array=wanted).clamp_min(0)
        if wanted != "fisher" or self.data is None:
            raise DataError(
                f"network '{self.name}': importance={wanted!r} needs {'data' if self.weights else 'weights'}"
            )
        return importance_of(task)


def read_table(path: Path) -> list[Network]:
    """The networks of a TOML file, in its order; folders and files in it are meant relative to its own.

    Raises:
        DataError: no such file, no TOML, more than a MiB, or a line that names no network; the message says which.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; wanted a table with a line for each network, or 'digits'")
    with path.open("rb") as file:
        text = file.read(LIMIT + 1)
    try:
        if len(text) > LIMIT:
            raise ValueError(f"more than {LIMIT:,} bytes")
        lines = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no TOML: {error}") from error
    return [network_of(name, line, path.parent) for name, line in lines.items()]


def network_of(name: str, line: Any, folder: Path) -> Network:
    """One line of a table; `DataError` for unknown or wrong settings."""
    known = [field.name for field in fields(Network)][1:]
    if not isinstance(line, dict) or "model" not in line or (unknown := sorted(line.keys() - set(known))):
        what = f"unknown settings {', '.join(unknown)}" if isinstance(line, dict) and "model" in line else "no model"
        raise DataError(f"network '{name}' has {what}; wanted model and, where needed, {', '.join(known[1:])}")
    placed = dict(line)
    if isinstance(data := line.get("data"), str):
        kind, _, place = data.partition(":")
        placed["data"] = f"{kind}:{folder / place}" if place and kind != "hub" else data
    if isinstance(weights := line.get("weights"), str):
        placed["weights"] = str(folder / weights)
    if isinstance(rate := line.get("rate"), int) and not isinstance(rate, bool):
        placed["rate"] = float(rate)
    for field in fields(Network)[1:]:
        if field.name not in placed:
            continue
        value = placed[field.name]
        if isinstance(value, bool) or not isinstance(value, field.type):  # type: ignore[arg-type]
            raise DataError(
                f"network '{name}': {field.name}={value!r}; wanted {getattr(field.type, '__name__', field.type)}"
            )
    return Network(name, **placed)


def digit_networks(count: int = 10) -> list[Network]:
    """Small networks on the digits in scikit-learn, different seeds: a table that needs no files."""
    return [Network(f"digits-{n}", "mlp_digits", "digits", epochs=8, rate=1e-2, seed=n) for n in range(count)]


def members_of(networks: Sequence[Network], cache: Path) -> list[Member]:
    """All of them, ready for an experiment."""
    return [network.member(cache) for network in networks]


def trained(network: Network, task: Task, cache: Path) -> None:
    """Give the task's model the weights kept in `cache`, or train it and keep them.

    Adam (decoupled weight decay 1e-2) with the rate rising and falling along one cycle.

    Raises:
        LayoutError: the file kept is of another network.
    """
    path = cache / f"{network.name}.safetensors"
    note = repr(network)
    if path.is_file():
        arrays, metadata = load_arrays(path)
        if (found := metadata.get("network")) != note:
            raise LayoutError(f"{path} is of another network ({str(found)[:300]}); remove it to train {note} anew")
        task.layout.assign(task.model, arrays["theta"])
        return
    steps = network.epochs * sum(1 for _ in task.train)
    optimizer = torch.optim.AdamW(task.model.parameters(), network.rate, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.rate, total_steps=steps + 1, pct_start=0.1)
    for _ in epochs(task, optimizer, count=network.epochs, each_step=lambda theta, *, step: scheduler.step()):
        pass
    save_arrays(path, {"theta": task.theta()}, {"network": note})
