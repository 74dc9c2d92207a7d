"""A model compiled for exact inference (`compiler.compile_program`): which sites are matrix products, which are scored
by a run, in which order latents are summed out. The E-step (`estep.expectations`), posteriors of a row's discrete
latents, and the checks of data against a model.
"""
