"""Comparisons: who is stronger than whom, from contests of two."""
