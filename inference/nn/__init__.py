"""Networks in the plain sense: multilayer perceptrons and convolutions, heads of likelihoods and of posteriors, flows,
and rows of a table as their input. Knows no driver.
"""
