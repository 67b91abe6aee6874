"""Everything that only a GPU can tell: ``python -m bench.gpu``."""
