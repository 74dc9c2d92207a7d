"""From what a user has to tensors, and back: tables, arrays, sparse counts, texts, long tables, graphs, files and
loaders (`adapt`), what a fit remembers of them (`schema`), batches of rows, and rows to start from (`seeding`).
Knows no model and no inference.
"""
