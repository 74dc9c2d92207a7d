"""From a Pyro model/guide pair and data to a fit. `README.md` in this folder draws the house."""
