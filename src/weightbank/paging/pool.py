"""Many networks in one small memory (after Neural Weight Virtualization, Lee and Nirjon, MobiSys 2020).

>>> pool = Pool(capacity="280 kB")
>>> pool
Pool(70,000 positions of Native('float32'), 0 tenants)
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightbank.errors import CapacityError, LayoutError, NonFiniteError, StoreError
from weightbank.formats import Format, format_of
from weightbank.layout import Layout, Where
from weightbank.paging.draft import Draft
from weightbank.paging.exclusive import chosen_exclusive
from weightbank.paging.importance import Importance, importance_of, normalised
from weightbank.paging.owner import Owner, positions
from weightbank.paging.place import How, place
from weightbank.paging.placement import Placement
from weightbank.paging.report import Report, report_of
from weightbank.paging.serve import Generation, Lease
from weightbank.paging.tenant import Tenant, TenantLaw, keys_of, rest_of, skeleton_of
from weightbank.sizes import parse_bytes
from weightbank.task import Task

ALIGN = 16
"""Positions between possible starts of a tensor: 64 bytes of float32; a block of the format, where that is more."""


class Pool:
    """One owner tensor of N positions and the networks that share them.

    Args:
        capacity: of the shared memory: bytes as a text ("280 kB" is 280,000) or a number of weights (70_000).
        dtype: what a position is stored as: torch.float32, torch.bfloat16, or a Format with rows such as "bfp8".
        reserve: positions at the end, of the same capacity, that only exclusive tensors may take.
        staging: bytes (or a text) of gathered copies to keep while nobody uses them; None keeps all. With 0, networks
            in pages or codes are read from the pool layer by layer whenever they run: least memory, but slower than
            from a copy. Networks of float32 extents in a float32 pool run from views and need none.
        seed: of the search for places.

    Buffers (BatchNorm statistics) and parameters outside a task's layout are kept beside the owner, unshared and
    unrounded. Every edit makes a new generation, readers keep theirs: `use` never waits for anything. The pool lives
    on the CPU. Raises `CapacityError` and `FormatError`.
    """

    def __init__(
        self,
        capacity: str | int,
        *,
        dtype: torch.dtype | Format | str = torch.float32,
        reserve: int = 0,
        staging: int | str | None = 0,
        seed: int = 0,
    ) -> None:
        format = format_of(dtype)
        size = positions(capacity, format)
        if type(reserve) is not int or not 0 <= reserve <= size:
            raise CapacityError(f"reserve={reserve!r} of {size:,} positions; wanted a whole number of them")
        self._setup(Generation(0, Owner.of(torch.zeros(size), format), {}), reserve, staging, seed)

    def _setup(self, generation: Generation, reserve: int, staging: int | str | None, seed: int) -> None:
        self.reserve, self._seed = reserve, seed
        self._staging = parse_bytes(staging) if isinstance(staging, str) else staging
        self._editing = threading.RLock()
        self._saving = threading.Lock()
        self._stamps: dict[Path, tuple[str, int]] = {}  # of files read or written, with the generation in them
        self._source: tuple[Path, bool] | None = None
        self.generation = generation
        """What readers see now; replaced as a whole."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        models: Mapping[str, nn.Module] | None = None,
        *,
        mapped: bool = True,
        staging: int | str | None = 0,
        seed: int = 0,
    ) -> "Pool":
        """The pool in a file; its owner is the mapped file itself, so processes that open it share one copy of it.

        models: by tenant, a module of the right structure; its weights do not matter, it may be on the meta device.
            Tenants without one can be read, materialised and removed, but not used.
        mapped: False reads the owner into memory.
        Raises `CorruptError` for a file that is not a whole pool, `StoreError` for none, `LayoutError` for models
            that do not fit.
        """
        from weightbank.paging.files import load_pool

        generation, reserve, stamp = load_pool(Path(path), mapped=mapped)
        pool = cls.__new__(cls)
        pool._setup(generation, reserve, staging, seed)
        pool._stamps[_place(Path(path))] = stamp, generation.number
        pool._source = Path(path).absolute(), mapped
        pool._publish(generation.owner, dict(generation.tenants), models or {}, number=generation.number)
        return pool

    def save(self, path: str | Path, *, importance: bool = True, overwrite: bool = False) -> None:
        """Write one `.safetensors` file, whole or not at all: the old one is replaced when the new one is on the disk.

        importance: keep two bytes per weight of each tenant, which adding and tuning need; without them the file is
            for serving only.
        overwrite: also replace what others have saved to a file since this pool was opened from it or saved to it.
            Files that this pool has nothing to do with are always replaced.
        Raises `ConflictError` when others have, `CapacityError` when the disk is full; the old file stays then.
        """
        from weightbank.paging.files import save_pool

        with self._saving:
            place, generation = _place(Path(path)), self.generation
            known = None if overwrite or place not in self._stamps else self._stamps[place][0]
            stamp = save_pool(Path(path), generation, reserve=self.reserve, importance=importance, known=known)
            self._stamps[place] = stamp, generation.number

    def copy(self) -> "Pool":
        """Another pool that begins with what this one serves now, sharing its memory until either is edited.

        To try a format or a further network on; it belongs to no file.
        """
        other = Pool.__new__(Pool)
        other._setup(self.generation, self.reserve, self._staging, self._seed)
        return other

    def refresh(self) -> bool:
        """Serve what another process has saved to the file this pool was opened from; False if that is nothing new.

        Readers keep the generation they hold; edits made here and not saved are dropped. Raises as `open` does, and
        `StoreError` for a pool that was not opened from a file; what is served stays then.
        """
        from weightbank.paging.files import load_pool, stamp_of

        if self._source is None:
            raise StoreError("this pool was not opened from a file: Pool.open makes one that can be refreshed")
        path, mapped = self._source
        with self._editing, self._saving:
            now = self.generation
            if self._stamps.get(_place(path)) == (stamp_of(path), now.number):
                return False
            found, reserve, stamp = load_pool(path, mapped=mapped)
            tenants = dict(found.tenants)
            for name, tenant in tenants.items():
                known = now.tenants.get(name)
                if known is not None and known.layout.fingerprint == tenant.layout.fingerprint:
                    tenants[name] = replace(tenant, skeleton=known.skeleton)
            self.reserve = reserve
            self._publish(found.owner, tenants, {}, number=found.number)
            self._stamps[_place(path)] = stamp, found.number
        return True

    def add(
        self,
        task: Task,
        *,
        name: str | None = None,
        importance: Importance | None = None,
        share: float = 1.0,
        placement: How = "extents",
        exclusive: Where | float | None = None,
        page_size: int = 128,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the network of `task` in, with its present weights; shared positions move to the mean of all on them.

        Until `tune` has run, sharing costs accuracy, of the newcomer and of those it shares with.

        Args:
            task: its layout is what is shared; tied parameters count once.
            name: of the tenant; the task's by default.
            importance: how much each weight counts, shape (P,) or a function of the task such as a `curvature`; the
                Fisher information of 2,000 training examples by default. Only proportions count: its mean becomes
                `share`.
            share: how much the whole network counts among the others.
            placement: "extents" (each tensor one aligned run: parameters are views), "pages" of `page_size` weights
                (cheaper sharing, but read layer by layer when used), or "published" (the original's pages).
            exclusive: which parameters are not shared: a rule such as `paging.vectors` (biases and norms) or
                `weightbank.within("head")`, or a fraction such as 0.02: that part of the weights, in the tensors with
                the most importance per weight. By default none: tuned networks did not need it, it takes capacity.
            page_size: weights per page.
            notes: plain JSON to keep with the tenant.

        Raises `LayoutError` for a name that is there already or a model that cannot be copied, `CapacityError` when
        there is no room, `NonFiniteError`, `CurvatureError`; the pool is as before then.
        """
        name = task.name if name is None else name
        if not isinstance(name, str) or (notes is not None and not isinstance(notes, Mapping)):
            raise LayoutError(f"name={name!r}, notes={notes!r}; wanted a text, and a mapping or nothing")
        if not name or name in self.generation.tenants:
            raise LayoutError(f"'{name}' names a tenant already, or nobody: pass another name=")
        layout = task.layout
        if any(parameter.is_meta for parameter in task.model.parameters()):
            raise LayoutError(f"'{name}': its model is on the meta device and has no weights: load them first")
        theta = task.theta().detach().to("cpu", torch.float32)
        if not bool(theta.isfinite().all()):
            raise NonFiniteError(f"'{name}': {int((~theta.isfinite()).sum()):,} weights are NaN or infinite")
        if layout.size > self.size:
            raise CapacityError(
                f"'{name}' has {layout.size:,} weights, the pool {self.size:,} positions: make it larger"
            )
        relative, scale = normalised(importance_of(task, importance), share)
        kept = relative.bfloat16()
        alone = chosen_exclusive(task.model, layout, relative, exclusive)
        unplaced = Tenant(
            name=name,
            layout=layout,
            placement=Placement(layout.size, ()),
            rest=rest_of(task.model, layout),
            keys=keys_of(task.model),
            importance=kept,
            scale=scale,
            skeleton=skeleton_of(task.model),
            notes=dict(notes or {}),
        )
        with self.edit() as draft:
            if name in draft.tenants:
                raise LayoutError(f"'{name}' was added meanwhile: pass another name=")
            generator = torch.Generator().manual_seed(self._seed)
            options: dict[str, Any] = {"how": placement, "exclusive": alone, "page_size": page_size}
            placed = place(draft, name, layout, theta, kept.float(), **options, generator=generator)
            draft.admit(replace(unplaced, placement=placed), theta)

    def remove(self, name: str) -> None:
        """Take a tenant out; everybody else keeps exactly the weights they had. `LayoutError` for an unknown name."""
        with self.edit() as draft:
            self.generation.tenant(name)
            draft.dismiss(name)

    def use(self, name: str) -> Lease:
        """`with pool.use("digits") as net: y = net(x)`: a network in evaluation mode, by a look-up; any thread.

        The module belongs to the pool: call it, do not change it, and do not keep it longer than needed, because it
        keeps its generation. Raises `LayoutError` for an unknown name, or a tenant without a model.
        """
        return self.generation.lease(name)

    def __getitem__(self, name: str) -> TenantLaw:
        """A tenant as a law over its weights: layout, mean, variance (zero), sample."""
        return self.generation.law(name)

    def materialise(self, name: str) -> dict[str, Tensor]:
        """An ordinary state_dict of a tenant, with tensors of its own: networks may leave."""
        generation = self.generation
        return generation.tenant(name).state_dict(generation.theta(name))

    def attach(self, models: Mapping[str, nn.Module]) -> None:
        """Give tenants of an opened pool their structure; see `open`."""
        with self._editing:
            now = self.generation
            self._publish(now.owner, dict(now.tenants), models, number=now.number)

    @contextmanager
    def edit(self) -> Iterator[Draft]:
        """A draft of the next generation; it appears to readers at the end of the block, or never if that raises.

        One thread edits at a time, others wait here. Readers do not.
        """
        with self._editing:
            draft = Draft(self.generation, align=max(ALIGN, self.format.columns), reserve=self.reserve)
            yield draft
            if draft.publish:
                self._publish(draft.rounded(), draft.tenants, {}, number=self.generation.number + 1)

    def report(self) -> Report:
        """Where the bytes are and who shares what; `print` it."""
        return report_of(self.generation, self.reserve)

    @property
    def size(self) -> int:
        """N, the positions of the owner."""
        return self.generation.owner.size

    @property
    def format(self) -> Format:
        """What a position is stored as."""
        return self.generation.owner.format

    @property
    def nbytes(self) -> int:
        """Bytes of the owner and of what is kept beside it, without gathered copies and importances."""
        generation = self.generation
        return generation.owner.nbytes + sum(tenant.nbytes_rest for tenant in generation.tenants.values())

    def __contains__(self, name: str) -> bool:
        return name in self.generation.tenants

    def __iter__(self) -> Iterator[str]:
        return iter(self.generation.tenants)

    def __len__(self) -> int:
        return len(self.generation.tenants)

    def __repr__(self) -> str:
        return f"Pool({self.size:,} positions of {self.format!r}, {len(self)} tenants)"

    def _publish(
        self, owner: Owner, tenants: dict[str, Tenant], models: Mapping[str, nn.Module], *, number: int
    ) -> None:
        for name, model in models.items():
            if name not in tenants:
                raise LayoutError(f"a model came for '{name}'; tenants here: {', '.join(tenants) or 'none'}")
            names = tenants[name].layout.names
            layout = Layout.of(model, where=lambda given, _, names=names: given in names)  # type: ignore[misc]
            if layout.fingerprint != tenants[name].layout.fingerprint:
                raise LayoutError(f"the model for '{name}' has other weights than the pool holds under this name")
            tenants[name] = replace(tenants[name], skeleton=skeleton_of(model))
        self.generation = Generation(number, owner, tenants, staging=self._staging)


def _place(path: Path) -> Path:
    """One name for a file however it is named; a link is a file of its own, as saving replaces the link."""
    return path.parent.resolve() / path.name
