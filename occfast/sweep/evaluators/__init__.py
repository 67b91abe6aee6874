"""Evaluators: the outputs of a network under an occluder."""
