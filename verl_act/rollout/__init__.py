"""Episodes in a live environment: the loop itself (`episode.py`), and its adapter to verl (`agent_loop.py`)."""
