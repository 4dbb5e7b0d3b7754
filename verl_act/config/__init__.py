"""Hydra groups (`+act=...`); a package, because Hydra takes no other folder for one."""
