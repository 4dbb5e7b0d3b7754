"""Rewards as verl calls them: pure functions of a reply and its row. `route.compute_score` serves every recipe."""
