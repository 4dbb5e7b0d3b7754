"""File names in an evaluation folder. Separate from `run`, so that readers do not import Ray."""

from __future__ import annotations

METRICS_FILE = "metrics.json"
EPISODES, NEXT_ACTIONS, CHOICES = "episodes.jsonl", "next_actions.jsonl", "choices.jsonl"
REASONING, RATIONALES = "reasoning.jsonl", "rationales.jsonl"
RECORDS = (EPISODES, NEXT_ACTIONS, CHOICES, REASONING, RATIONALES)
"""The files of records; each is named after what it holds."""
FILES = (METRICS_FILE, *RECORDS)
"""All result files of an evaluation."""
