"""Continuous latents behind the columns of a table."""
