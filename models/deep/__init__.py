"""Deep latent variable models: networks between the latents and the data."""
