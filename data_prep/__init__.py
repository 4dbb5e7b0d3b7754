"""Making the data of both stages: games, expert trajectories, alternatives, pairs, imports."""
