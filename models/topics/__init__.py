"""Topic models and factorizations of counts: rows that mix the same few profiles of columns."""
