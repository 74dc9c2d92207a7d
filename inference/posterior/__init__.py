"""What a fit says of data: scores, latents, draws, new rows, reconstructions, imputations, words."""
