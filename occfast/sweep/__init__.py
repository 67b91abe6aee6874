"""Occlusion maps: where to put the occluder, how to evaluate it there, and what comes out."""
