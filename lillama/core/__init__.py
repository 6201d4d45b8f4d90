"""Ground floor: errors, results, hashes, signals and what else needs nothing of the package."""
