"""Models as users write them, never registered: small, with data drawn for them. Each is a story of its own."""

from . import families, latents, learned
from .base import PRIORS, SMOOTH, STORIES, Story

__all__ = ["PRIORS", "SMOOTH", "STORIES", "Story", "families", "latents", "learned"]
