"""How good a model is: whole episodes, next actions on expert states, and choices between pairs."""
