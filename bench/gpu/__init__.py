"""Tests and benchmarks on a GPU: ``python -m bench.gpu``."""
