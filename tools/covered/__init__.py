"""Training of the network of ``occfast covered``: ``python -m tools.covered``."""
