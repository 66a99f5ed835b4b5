"""Benchmarks: each is a program, run by a verb of the Makefile, that prints what it measured and on which machine."""
