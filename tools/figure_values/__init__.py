"""Measured numbers as README and docs show them, read from the committed files."""
