"""Captum's ``Occlusion``, computed by occfast's sweeps. Captum itself is not needed."""

from .occlusion import Occlusion

__all__ = ["Occlusion"]
