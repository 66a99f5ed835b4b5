"""Speed and memory, measured side by side in one run. `make` lists the benchmarks."""

import os

# As the service's own processes: threads that spin while they wait are ruinous beside anybody else's work. Read by
# OpenMP when torch is first imported, which is after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
