"""occfast: face recognisers that keep working when part of the face is covered."""

__version__ = "0.1.0"
