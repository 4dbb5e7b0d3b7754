"""Pairs, expert steps and tasks as verl reads them: `dataset.ActDataset` is verl's `data.custom_cls`."""
