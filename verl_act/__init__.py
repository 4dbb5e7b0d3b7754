"""Agentic Critical Training (ACT, arXiv 2603.08706) as a plugin for verl."""

__version__ = "0.1.0"
