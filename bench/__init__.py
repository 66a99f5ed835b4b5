"""Speed and memory, measured side by side in one run. `make` lists the benchmarks."""

import os

from workers.idle_cores import wait_policy

# As trainings have it. Read by OpenMP when torch is first imported, which is after this.
os.environ |= wait_policy()
