"""The wire contract: what requests and answers look like, and nothing else."""
