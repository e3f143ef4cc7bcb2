"""Populations, their facts, the questions about them and the entropies of all of these. Uses numpy, not torch."""
