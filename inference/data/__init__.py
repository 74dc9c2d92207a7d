"""From what a user has to tensors, and back: tables, arrays, sparse counts, texts, long tables, graphs, files and
loaders (`adapt.adapt`), what a fit remembers of them (`schema`), batches of rows, rows to start from (`seeding`), and
the published tables that come along (`bundled`). Knows no model and no inference.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "adapt": "loaded",
        "batches": "Batches",
        "bundled.tables": "BUNDLED load_bundled",
        "columns": "center_and_variance column_kinds num_categories",
        "graph": "Graph",
        "idx": "read_idx",
        "schema": "Dataset Schema",
        "seeding": "kmeans_plusplus near_mean near_rows random_regressions",
        "sparse": "Bags",
        "streams": "Rows",
        "structures": "is_missing num_rows slice_rows",
    },
)
