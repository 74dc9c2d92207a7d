"""Tests and scales: what the answers of a person tell of one quantity behind them."""
