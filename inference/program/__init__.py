"""A model compiled for exact inference, once (`compiler.compile_program`): which sites are matrix products, which are
scored by a run, in which order latents are summed out. `Program.on` binds it to other data, `Program.on_rows` to some
of its own rows. The E-step (`estep.expectations`), posteriors of a row's discrete latents, and the checks of data
against a model.
"""
