"""Distributions that Pyro lacks and the engine needs: of values with missing cells, of rows of counts, of mixed
columns.
"""
