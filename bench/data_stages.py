"""One stage of the data benchmark, in a process of its own so that its peak of memory is its own.

`python -m bench.data_stages STAGE ARGUMENT …` prints what was measured as JSON: a `Measured`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import data_pairs
from bench.machine import peak_bytes, resident_bytes
from encoders.registry import locate
from encoders.tokenizer import TextTokenizer, TokenizedText
from workers.data import inspection, preparation, validation
from workers.data import parquet as _parquet  # noqa: F401 (with pyarrow: imports are none of a stage's memory)
from workers.data.lengths import Measure
from workers.data.plan import Setting
from workers.data.prepared import Prepared
from workers.training.batches import Batch, Batches
from workers.training.tokens import select

ROOT = Path(__file__).parent.parent
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
WORDS = "words.txt"


class StageFailedError(Exception):
    """The process of a stage ended without figures; the message is what it wrote."""


@dataclass
class Measured:
    """What one stage took. Where /proc does not exist, `imported_bytes` is the peak so far."""

    rows: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads
    imported_bytes: int = 0  # resident after the imports
    peak_bytes: int = 0  # resident at most, of the whole process
    others: dict[str, float] = field(default_factory=dict)  # what only this stage has

    @property
    def bytes_above_imports(self) -> int:
        return max(0, self.peak_bytes - self.imported_bytes)

    def for_a_million(self, seconds: float) -> float:
        """Seconds of this many rows → of a million."""
        return seconds * 1e6 / self.rows


def in_own_process(stage: str, *arguments: object) -> Measured:
    """Run a stage and wait for it. Raises StageFailedError."""
    command = [sys.executable, "-m", "bench.data_stages", stage, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StageFailedError(f"{stage} {' '.join(map(str, arguments))}:\n{done.stderr}")
    return Measured(**json.loads(done.stdout))


def run(stage: str, *arguments: str) -> Measured:
    """Run a stage in this process."""
    measured = Measured(imported_bytes=resident_bytes())
    _STAGES[stage](measured, *arguments)
    return measured


def write(measured: Measured, folder: str, rows: str, *names_and_shares: str) -> None:
    """Generate pairs once for each file, NAME=SHARE with a SHAREth of the rows, and keep the words they are made of."""
    every = data_pairs.words()
    (Path(folder) / WORDS).write_text("\n".join(every), "utf-8")
    measured.rows = int(rows)
    with _timed(measured):
        for each in names_and_shares:
            name, _, share = each.rpartition("=")
            path = Path(folder) / name
            data_pairs.write(data_pairs.pairs(int(rows) // int(share), every), path)
            measured.others[name] = path.stat().st_size


def validate(measured: Measured, path: str) -> None:
    """Judge every row of a file."""
    with _timed(measured):
        _keep(measured, validation.validate(Path(path), filename=Path(path).name))


def inspect(measured: Measured, path: str) -> None:
    """The same with the report, as the service does it with each file."""
    tokenizer = TextTokenizer.of_folder(locate(MODEL, None))
    limit = tokenizer.max_seq_length
    with _timed(measured):
        found = inspection.inspect(
            Path(path), Setting(MODEL, limit), filename=Path(path).name, measure=Measure(MODEL, tokenizer, limit)
        )
        _keep(measured, found.found)


def prepare(measured: Measured, path: str, folder: str) -> None:
    """Read, tokenize and write as mapped arrays, as the service does it with each file once."""
    tokenizer = TextTokenizer.of_folder(locate(MODEL, None))
    with _timed(measured):
        rows = validation.rows(Path(path), filename=Path(path).name)
        data = preparation.prepare(rows, Path(folder), tokenizer=tokenizer, limit=tokenizer.max_seq_length)
    measured.rows = len(data)
    assert data.ids is not None
    measured.others = {"tokens a text": len(data.ids) / data.items, "distinct": data.distinct}
    measured.others["bytes on disk"] = sum(path.stat().st_size for path in Path(folder).iterdir())


def reopen(measured: Measured, folder: str) -> None:
    """Open what is prepared, every byte compared with its checksum."""
    with _timed(measured):
        measured.rows = len(Prepared.open(Path(folder)))


def prepare_words(measured: Measured, kind: str, folder: str, rows: str) -> None:
    """Labels or triplets with a token for each word: to a sampler, what the tokens are makes no difference."""
    make = {"labels": data_pairs.labelled, "triplets": data_pairs.triplets}[kind]
    every = (Path(folder).parent / WORDS).read_text("utf-8").split("\n")
    with _timed(measured):
        made = make(int(rows), every)
        measured.rows = len(preparation.prepare(made, Path(folder), tokenizer=_words_as_tokens, limit=256))


def batches(measured: Measured, folder: str, batch_size: str, bucket_by_length: str) -> None:
    """Plan an epoch (which is what is timed), draw it with its tokens, go on from its middle; then what is held."""
    data = Prepared.open(Path(folder))
    size, buckets = int(batch_size), bucket_by_length == "True"
    measured.rows = len(data)
    with _timed(measured):
        sampler = Batches(data, batch_size=size, seed=0, bucket_by_length=buckets)
    others = measured.others
    others.update(_drawn(data, sampler.epoch(0)))
    started = time.perf_counter()
    next(sampler.starting_at((0, sampler.total_steps // 2)))
    others["resume"] = time.perf_counter() - started
    measured.peak_bytes = peak_bytes()
    del sampler
    others.update(_held(data, size, bucket_by_length=buckets))


def _drawn(data: Prepared, epoch: Iterator[Batch]) -> dict[str, float]:
    drawing = selecting = 0.0
    rows = used = padded = 0
    started = time.perf_counter()
    for batch in epoch:
        drawn = time.perf_counter()
        select(data, batch.items)
        selected = time.perf_counter()
        drawing += drawn - started
        selecting += selected - drawn
        rows += batch.rows
        for lengths in _lengths(data, batch):
            used += int(lengths.sum())
            padded += len(lengths) * int(lengths.max(initial=0))
        started = time.perf_counter()
    drawing += time.perf_counter() - started
    return {"rows drawn": rows, "draw": drawing / rows, "tokens": selecting / rows, "padding": 1 - used / padded}


def _lengths(data: Prepared, batch: Batch) -> list[npt.NDArray[np.int64]]:
    """Of what asks and of what answers: each is padded to its longest."""
    assert data.starts is not None
    lengths = data.starts[batch.items + 1] - data.starts[batch.items]
    return [lengths[batch.asks], lengths[~batch.asks]]


def _held(data: Prepared, batch_size: int, *, bucket_by_length: bool) -> dict[str, float]:
    """Bytes a row that Python and numpy hold while an epoch is drawn, and at most while it begins."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    sampler = Batches(data, batch_size=batch_size, seed=0, max_steps=1, bucket_by_length=bucket_by_length)
    tracemalloc.reset_peak()
    epoch = sampler.epoch(0)
    next(epoch)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"held": (held - before) / len(data), "held at most": (most - before) / len(data)}


def _words_as_tokens(texts: Sequence[str]) -> list[TokenizedText]:
    counts = [len(text.split()) + 2 for text in texts]
    return [TokenizedText(np.zeros(count, dtype=np.int32), count) for count in counts]


def _keep(measured: Measured, found: validation.FileReport) -> None:
    """A benchmark of refusals would mean nothing."""
    if not found.usable:
        raise RuntimeError(found.summary)
    measured.rows = found.rows


@contextmanager
def _timed(measured: Measured) -> Iterator[None]:
    cpu, started = time.process_time(), time.perf_counter()
    yield
    measured.seconds = time.perf_counter() - started
    measured.cpu_seconds = time.process_time() - cpu
    measured.peak_bytes = peak_bytes()


_STAGES: dict[str, Callable[..., None]] = {
    stage.__name__: stage for stage in (write, validate, inspect, prepare, reopen, prepare_words, batches)
}


def main() -> None:
    print(json.dumps(asdict(run(*sys.argv[1:]))))


if __name__ == "__main__":
    main()
