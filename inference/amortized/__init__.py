"""Stochastic variational inference of pairs with networks, and of encoders that the engine derives
(`fit.deep_svi`): bounds, training, steps recorded once and replayed, checkpoints.
"""
