"""The files of an evaluation's folder. Apart from `run`, so that who plans or reads one need not start with Ray."""

from __future__ import annotations

METRICS_FILE = "metrics.json"
EPISODES, NEXT_ACTIONS, CHOICES = "episodes.jsonl", "next_actions.jsonl", "choices.jsonl"
REASONING = "reasoning.jsonl"
FILES = (METRICS_FILE, EPISODES, NEXT_ACTIONS, CHOICES, REASONING)
"""All that an evaluation says."""
