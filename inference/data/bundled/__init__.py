"""Small published tables and the data sets inside installed packages, by name (`tables.load_bundled`)."""
