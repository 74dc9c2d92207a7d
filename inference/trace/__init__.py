"""A Pyro program as it is read: one run under handlers (`handlers.run`) gives its params, latents, observed sites and
plates (`structure.read`); marked tensors tell which argument comes from which param or latent, and how (`provenance`,
`polynomials`). What the engine cannot read is refused here, by name.
"""
