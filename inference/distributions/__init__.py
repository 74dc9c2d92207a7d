"""Distributions that Pyro lacks and the engine needs: of values with missing cells, whose density is the marginal of
those observed (`missing`), of whole rows of counts (`row_multinomial`), and of columns of several kinds
(`mixed_rows`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "missing": "Missing marginal_log_prob",
        "mixed_rows": "MixedRows",
        "row_multinomial": "RowMultinomial",
    },
)
