"""Published correlations as rows: tables of which the rows are lost, and the fits to them are not.

What is normal, factor analysis among it, sees no more of a table than the means and covariances of its columns; so rows
that have exactly the published ones give exactly the published fits.
"""

from __future__ import annotations

import math
from typing import Any

# Harman (1976), Modern Factor Analysis, 3rd ed., table 2.3: 305 girls from seven to seventeen; below the diagonal.
_GIRLS = (
    ("height", "arm_span", "forearm", "lower_leg", "weight", "bitro_diameter", "chest_girth", "chest_width"),
    """
    .846
    .805 .881
    .859 .826 .801
    .473 .376 .380 .436
    .398 .326 .319 .329 .762
    .301 .277 .237 .327 .730 .583
    .382 .415 .345 .365 .629 .577 .539
    """,
    305,
)


def girls() -> Any:
    """305 rows (N, 8) of mean 0 whose correlations are those of Harman's table, and variances 1 (divided by N)."""
    import numpy as np
    import pandas as pd

    names, lower, num_rows = _GIRLS
    size = len(names)
    correlation = np.eye(size)
    correlation[np.tril_indices(size, -1)] = [float(word) for word in lower.split()]
    correlation = correlation + np.tril(correlation, -1).T
    noise = np.random.default_rng(0).standard_normal((num_rows, size))
    noise -= noise.mean(0)
    orthogonal, _ = np.linalg.qr(noise)  # its columns sum to 0 too
    rows = math.sqrt(num_rows) * orthogonal @ np.linalg.cholesky(correlation).T
    return pd.DataFrame(rows, columns=list(names))
