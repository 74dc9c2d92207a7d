"""Questions to a fit: half-steps of EM and their KL divergences, gaps of a bound, words and coherence of topics."""
