"""Repeated simple self-distillation of code models (arXiv 2604.01193), with exact resume."""

__version__ = "0.1.0"
