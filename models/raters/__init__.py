"""Raters: the truth about each item behind labels that people gave it, and how far each of them is to be trusted."""
