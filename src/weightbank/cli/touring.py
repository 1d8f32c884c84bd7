"""What `weightbank tour` does."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F

from weightbank.cli.console import say, say_wrapped, show_json, show_table
from weightbank.cli.tables import comparison, show_comparison
from weightbank.cli.tour import OWN_MODEL
from weightbank.cli.touring_jobs import COLUMNS, THEORY, stops
from weightbank.cli.touring_page import tour_document, write_page
from weightbank.data import digits, photo_patches
from weightbank.distributions import Moments
from weightbank.errors import StoreError
from weightbank.posterior import compare, record
from weightbank.sizes import readable
from weightbank.store import RowLog
from weightbank.task import Task, TensorBatches
from weightbank.zoo import mlp

EXAMPLES, WRONG, BATCH = 300, 0.2, 10
SKIPPED, EPOCHS, RATE = 40, 120, 0.05
DRAWS = 100


def show_tour(directory: Path | None, page: Path | None, seed: int, *, json: bool) -> None:
    """Visit all jobs and print; a directory that is given must be empty or new."""
    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StoreError(f"{directory}: not an empty directory; name a new one")
    start = time.perf_counter()
    with ExitStack() as stack:
        place = directory
        if place is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightbank-tour-")))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # two threads wait for each other longer than such small layers take
        task = noisy_digits(seed)
        optimizer = torch.optim.SGD(task.model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        formats = {"fp32": "float32 rows", "bfp8": "8-bit rows"}
        moments = {name: Moments(task.layout, rows=RowLog(place / name, format=name)) for name in formats}
        for log in moments.values():
            stack.callback(log.close)
        if not json:
            say_wrapped(
                f"Training {task.layout.size:,} weights on {EXAMPLES} digits, {WRONG:.0%} of them with a random label; "
                f"from epoch {SKIPPED} to {EPOCHS} the weights after every minibatch are recorded twice, in float32 "
                "and in 8-bit blocks."
            )
        record(task, optimizer, moments, epochs=EPOCHS, skip_epochs=SKIPPED)
        trained = time.perf_counter() - start
        sizes = {name: log.rows.nbytes for name, log in moments.items() if log.rows is not None}
        if not json:
            count, weights = moments["fp32"].count, readable(4 * task.layout.size)
            say_wrapped(
                f"{count:,} iterates of a network of {weights}: {readable(sizes['fp32'])} of float32 rows and "
                f"{readable(sizes['bfp8'])} of 8-bit rows on disk, after {trained:.0f} s."
            )
        ood = photo_patches(1000, generator=torch.Generator().manual_seed(seed))
        others = {"SWAG all, 8-bit": moments["bfp8"]}
        rows = compare(task, moments["fp32"], samples=DRAWS, ood=ood, others=others)
        if not json:
            show_comparison(rows)
            say_wrapped("\nThree networks of all digits: on a noisy device, trained in 8 bits, in one memory.")
        found, theory, swept = stops(seed)
    seconds = time.perf_counter() - start
    posterior = {**comparison(rows), "iterates": moments["fp32"].count, "bytes": sizes, "seconds": seconds}
    if page is not None:
        write_page(page, posterior, swept, found, theory)
    if json:
        show_json(tour_document(posterior, swept, found, theory))
        return
    show_table(list(COLUMNS), [list(row.cells) for row in found])
    say_wrapped("\nWhat the theory expects, ½ Σ curvature x squared error, and what the training loss does:")
    show_table(list(THEORY), [list(row.cells) for row in theory])
    kept = "removed" if directory is None else f"in {directory}"
    more = "" if page is None else f" All numbers and figures: {page}."
    say(f"\n{seconds:.0f} s in all; the posteriors are {kept}.{more}\n\n{OWN_MODEL}")


def noisy_digits(seed: int) -> Task:
    """300 digits to train, a fifth of them with a random label, and the other 1,497 to test."""
    data = digits()
    images = torch.cat([data.train[0], data.test[0]])
    labels = torch.cat([data.train[1], data.test[1]])
    generator = torch.Generator().manual_seed(seed)
    given = labels[:EXAMPLES].clone()
    wrong = torch.randperm(EXAMPLES, generator=generator)[: round(WRONG * EXAMPLES)]
    given[wrong] = torch.randint(10, (len(wrong),), generator=generator)
    torch.manual_seed(seed)
    train = TensorBatches(images[:EXAMPLES], given, BATCH, shuffle=True, generator=generator)
    test = (images[EXAMPLES:], labels[EXAMPLES:])
    return Task("digits", mlp(64, 128, 64, 10), F.cross_entropy, train, test, batch_size=512)
