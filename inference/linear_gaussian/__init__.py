"""Normal latents in which a model is linear: found by reading it (`reader`), summed out (`marginalize`), their EM,
posterior, closed forms and rotations.
"""
