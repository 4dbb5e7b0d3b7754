"""File names in an evaluation folder. Separate from `run`, so that readers do not import Ray."""

from __future__ import annotations

METRICS_FILE = "metrics.json"
EPISODES, NEXT_ACTIONS, CHOICES = "episodes.jsonl", "next_actions.jsonl", "choices.jsonl"
REASONING, RATIONALES = "reasoning.jsonl", "rationales.jsonl"
FILES = (METRICS_FILE, EPISODES, NEXT_ACTIONS, CHOICES, REASONING, RATIONALES)
"""All result files of an evaluation."""
