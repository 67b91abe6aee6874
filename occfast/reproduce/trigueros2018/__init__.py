"""Reproduction of trigueros2018."""
