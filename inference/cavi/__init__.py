"""Coordinate-ascent variational inference (`fit.fit_cavi`): the mean field derived from a model (`derivation`), its
updates as gradients of expectations (`mean_field`, `moments`), products of latents (`bilinear`).
"""
