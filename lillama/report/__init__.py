"""Results as tables: of a run, of a sweep. Needs no torch."""
