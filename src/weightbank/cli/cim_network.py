"""The network that is to be programmed: a zoo's, the user's own, or one kept in a file with its scores."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from weightbank.cli.console import note
from weightbank.cli.own import called
from weightbank.cli.runs import SHAPED, make_task
from weightbank.data import ImageData, load
from weightbank.errors import CorruptError, DataError, LayoutError
from weightbank.layout import Layout, everything
from weightbank.store.arrays import ArrayFile, save_arrays
from weightbank.task import Task, TensorBatches
from weightbank.training import epochs
from weightbank.types import Flat
from weightbank.zoo import MODELS, load_published

KIND = "weightbank network 1"
BATCH = 32
RATE = 3e-3


@dataclass(frozen=True)
class Wanted:
    """What the command line says of a network: see the options of the same names."""

    network: str
    data: str | None = None
    pretrained: Path | None = None
    epochs: int | None = None
    learning_rate: float = RATE
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Network:
    """A task with its trained weights, the names it was made of, and the scores that came with it, each (P,)."""

    task: Task
    model: str
    data: str
    scores: dict[str, Flat] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write weights, buffers and scores to one `.safetensors` file, atomically."""
        arrays = {f"state.{name}": tensor for name, tensor in self.task.model.state_dict().items()}
        arrays |= {f"scores.{name}": scores for name, scores in self.scores.items()}
        about = {"model": self.model, "data": self.data, "fingerprint": self.task.layout.fingerprint}
        save_arrays(path, arrays, {"weightbank": KIND, "network": json.dumps(about)})


def prepared(wanted: Wanted) -> Network:
    """The network of a file; or a model by name, trained here or read from `--pretrained`.

    Raises `DataError`, `LayoutError`, `CorruptError` or `StoreError` for what does not exist or does not fit.
    """
    if Path(wanted.network).suffix == ".safetensors":
        network = _kept(wanted)
    else:
        task, scores = _task(wanted.network, wanted), {}
        if wanted.pretrained is not None:
            scores = _weights(task, wanted.pretrained)
        elif ":" not in wanted.network or wanted.epochs is not None:
            train(task, 20 if wanted.epochs is None else wanted.epochs, wanted.learning_rate)
        network = Network(task, wanted.network, wanted.data or "digits", scores)
    _tell_frozen(network.task)
    return network


def train(task: Task, count: int, learning_rate: float) -> None:
    """So many epochs of Adam."""
    for _ in epochs(task, torch.optim.Adam(task.model.parameters(), lr=learning_rate), count=count):
        pass


def facts(wanted: Wanted) -> dict[str, Any]:
    """What a network was made of, for the JSON document of a command."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(wanted).items()}


def _kept(wanted: Wanted) -> Network:
    path = Path(wanted.network)
    if wanted.pretrained is not None or wanted.epochs is not None:
        raise DataError(f"{path} holds trained weights; leave out --pretrained and --epochs")
    with ArrayFile(path) as file:
        about = _about(file)
        model, data = about["model"], about["data"]
        if ":" in model:
            raise DataError(
                f"{path} holds weights of '{model}', code of its owner's that no file may call; name the network "
                f"itself and its weights: {model} --pretrained {path}"
            )
        task = _task(model, wanted, data)
        return Network(task, model, wanted.data or data, _restored(task, file))


def _weights(task: Task, path: Path) -> dict[str, Flat]:
    """Read weights into the model, from a file of ours with its scores or from a published one."""
    if path.suffix == ".safetensors":
        with ArrayFile(path) as file:
            if file.metadata.get("weightbank") == KIND:
                return _restored(task, file)
    load_published(task.model, path)
    return {}


def _about(file: ArrayFile) -> dict[str, str]:
    """What the network of a file was made of."""
    if file.metadata.get("weightbank") != KIND:
        found = file.metadata.get("weightbank", "nothing of weightbank")
        raise CorruptError(f"{file.path}: holds {found!r}; wanted a file of `weightbank cim curvature -o FILE`")
    try:
        about = json.loads(file.metadata["network"])
        return {name: str(about[name]) for name in ("model", "data", "fingerprint")}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptError(f"{file.path}: what it was made of cannot be read: {error!r}") from error


def _restored(task: Task, file: ArrayFile) -> dict[str, Flat]:
    """Put the file's weights and buffers into the model, and return its scores."""
    state = {f"state.{name}": tensor for name, tensor in task.model.state_dict().items()}
    shapes = {name: shape for name, shape in file.shapes.items() if name.startswith("state.")}
    laid_out = _about(file)["fingerprint"] == task.layout.fingerprint
    if not laid_out or shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise LayoutError(f"{file.path}: its {len(shapes)} tensors do not fit {task}; build the network they are of")
    scores: dict[str, Flat] = {}
    for name, shape in file.shapes.items():
        if name.startswith("scores."):
            if shape != (task.layout.size,) or not file.dtypes[name].is_floating_point:
                raise CorruptError(f"{file.path}: '{name}' has shape {shape}; wanted {task.layout.size} numbers")
            scores[name.removeprefix("scores.")] = file.read(name)
    task.model.load_state_dict({name.removeprefix("state."): file.read(name) for name in state})
    return scores


def _task(model: str, wanted: Wanted, data: str | None = None) -> Task:
    spec = wanted.data or data or "digits"
    if ":" in model:
        return _own(model, wanted)
    if model not in MODELS and model not in SHAPED:
        raise LayoutError(
            f"no model is called '{model}'; take {', '.join(SHAPED)} (both fit any data), one of {', '.join(MODELS)}, "
            "a function of your own as file:function, or a .safetensors file of `weightbank cim curvature`"
        )
    data_ = load(spec)
    task = make_task(model, data_, seed=wanted.seed, batch_size=BATCH, device=wanted.device)
    task.test = test_batches(data_)
    return task


def _own(name: str, wanted: Wanted) -> Task:
    made = called(name)
    if isinstance(made, Task):
        if wanted.data is not None:
            raise DataError(f"{name} returns a Task, which has data; leave out --data {wanted.data}")
        return made
    return image_task(made.to(wanted.device), load(wanted.data or "digits"), wanted.seed)


def image_task(model: torch.nn.Module, data: ImageData, seed: int) -> Task:
    """A classifier of images with its data; `DataError` if it does not take them."""
    train = TensorBatches(*data.train, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    task = Task(data.name, model, F.cross_entropy, train, test_batches(data))
    try:
        with torch.no_grad():
            task.predict(task.theta(), data.train[0][:1])
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"the model does not take images of {data.shape} as in '{data.name}': {error}") from error
    return task


def test_batches(data: ImageData) -> TensorBatches:
    """The test data in batches small enough that a pass with a chip for each says something: 16 or more, if it can."""
    return TensorBatches(*data.test, max(16, min(128, len(data.test[1]) // 16)))


def _tell_frozen(task: Task) -> None:
    total = Layout.of(task.model, where=everything).size
    if total > task.layout.size:
        note(
            f"{total - task.layout.size:,} of {total:,} weights are frozen (or left out by where=): they count as "
            "digital and exact"
        )
