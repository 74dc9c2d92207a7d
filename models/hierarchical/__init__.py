"""Hierarchies: groups that are different, yet drawn from one population, so that each borrows strength from all."""
