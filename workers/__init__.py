"""The queue side: RQ worker, leases, training."""
