"""What the engine costs, measured as ratios in one run: against its own matrix products and a literal reference."""
