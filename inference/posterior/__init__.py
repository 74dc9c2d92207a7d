"""What a fit says of data: one `Posterior` for each kind of fit (`exact`, `guided`, `conjugate`, `amortized`, `counts`,
`graphs`), which the verbs are written over: new rows (`generate`), expected cells (`expected`), anomalies, draws of
params around a point (`draws`), and a page of words (`summary`). `kinds` says which fit has which; `compiled` keeps its
program.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "anomaly": "anomalies roc",
        "base": "Fitted Posterior",
        "kinds": "posterior_of",
        "psis": "k_hat",
    },
)
