"""`verl-act doctor`: checks whether this installation can run ACT, and says how to fix what is wrong."""
