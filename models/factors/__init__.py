"""Rows that follow from a few continuous factors."""
