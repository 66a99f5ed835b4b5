"""Speed and memory, measured side by side in one run. `make` lists the benchmarks."""

import os
from multiprocessing import parent_process

from workers.idle_cores import wait_policy

# As trainings have it. Read by OpenMP when torch is first imported, which is after this. A child has its parent's.
if parent_process() is None:
    os.environ |= wait_policy()
