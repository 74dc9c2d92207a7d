"""Networks in the plain sense: multilayer perceptrons and convolutions (`networks`), heads that make a likelihood of
what a decoder gives (`likelihoods`) and a posterior of what an encoder gives (`posteriors`), flows, and rows of a
table as their input (`tabular`). Knows no driver.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "likelihoods": "Likelihood likelihood_of",
        "networks": "Networks conv_decoder conv_encoder mlp",
        "posteriors": "Flow posterior_of",
    },
)
