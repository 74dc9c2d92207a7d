"""Exponential families: natural parameters, statistics, closed-form estimates, and conjugate factors with their
moments, one small record each, looked up by Pyro's class (`registry`).
"""
