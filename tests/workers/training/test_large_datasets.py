"""A dataset larger than the memory that the process may have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEADROOM = 48 * 1024 * 1024
PROGRAM = f"""
import resource, sys
from pathlib import Path

import numpy as np

from tests.workers.data.rows import Tokens, pair
from workers.data.preparation import prepare
from workers.training.batches import Batches
from workers.training.tokens import select

def bytes_as_tokens(texts):
    return [Tokens(np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32), len(text)) for text in texts]

used = next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]
limit = 1024 * int(used) + {HEADROOM}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    bytearray(2 * {HEADROOM})
    sys.exit("the limit does not hold")
except MemoryError:
    pass

rows = (pair(f"{{n:08}}" * 400, f"-{{n:07}}" * 400) for n in range(10_000))
data = prepare(rows, Path(sys.argv[1]), tokenizer=bytes_as_tokens, limit=10_000)
assert data.ids.nbytes > 1.2 * limit, (data.ids.nbytes, limit)
tokens = sum(len(ids) for batch in Batches(data, batch_size=64, seed=0).epoch(0) for ids in select(data, batch.items))
assert tokens == 20_000 * 3200
"""


def test_a_dataset_larger_than_memory_is_prepared_and_batched(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "entry")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
