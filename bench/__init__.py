"""Comparisons with peers; every figure of the README comes from here."""
