"""What a person calls: `em`, `cavi`, `svi`, and `pick`, which chooses among them. They check options, take the data
in, hand both to the machinery, and make the one `Fit` of what it reached (`finish`). Nothing else makes fits.
"""
