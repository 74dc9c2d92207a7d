"""Pictures of fits: `kinds.plot` picks one by name or by what the model is; one file for each family of pictures."""
