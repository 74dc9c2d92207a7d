"""Fits on disk and in other hands: run folders, ArviZ, reports, the terminal."""
