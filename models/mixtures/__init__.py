"""Finite mixtures: each row belongs to one of K components."""
