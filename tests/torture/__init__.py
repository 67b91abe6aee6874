"""Torture of the commands and parsers: ``make torture``, or ``python -m tests.torture``; see docs/reliability.md."""
