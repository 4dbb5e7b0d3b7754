"""Evaluate a model: whole episodes, next actions on expert states, choices between candidates, and reasoning."""
