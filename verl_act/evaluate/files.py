"""The files of an evaluation's folder. Apart from `run`, so that who plans or reads one need not start with Ray."""

from __future__ import annotations

FIGURES_FILE = "figures.json"
EPISODES, NEXT_ACTIONS, CHOICES = "episodes.jsonl", "next_actions.jsonl", "choices.jsonl"
REASONING = "reasoning.jsonl"
FILES = (FIGURES_FILE, EPISODES, NEXT_ACTIONS, CHOICES, REASONING)
"""All that an evaluation says."""
