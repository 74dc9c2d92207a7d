"""Stochastic variational inference of pairs without networks (`fit.plain_svi`): normal guides and guides of the user's
own, the bound with discrete latents summed out (`elbo`), an ascent that stops by itself, checkpoints.
"""
