"""Text environments behind one protocol (`base.py`), found by name (`registry.py`)."""
