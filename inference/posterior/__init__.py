"""What a fit says of data: scores, latents, draws, new rows, reconstructions, imputations, anomalies, and a page of
words (`summary`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "anomaly": "anomalies roc",
        "psis": "k_hat",
    },
)
