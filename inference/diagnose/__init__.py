"""Questions to a fit that its verbs do not answer: half-steps of EM with their KL divergences (`decomposition`), where
a bound loses, by the family or by the encoder (`gaps.gaps`), words, coherence and perplexity of topics (`topics`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "decomposition": "HalfStep half_steps",
        "topics": "coherence perplexity top_words",
    },
)
