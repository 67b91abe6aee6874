"""Entry point of ``python -m occfast``."""

from .cli import main

main()
