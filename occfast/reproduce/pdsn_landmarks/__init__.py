"""Reproduction of pdsn-landmarks."""
