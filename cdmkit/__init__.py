"""Cascaded diffusion models from a recipe: declarative, plugin-based, on PyTorch."""

__version__ = "0.1.0"
