"""`python -m verl_act doctor`: is this installation fit for ACT, and if not, what mends it."""
