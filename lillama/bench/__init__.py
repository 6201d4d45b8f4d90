"""Measure what the engine costs, as ratios in one run: against its own matrix products and a literal reference."""
