"""The package's version; part of every run's fingerprint."""

__version__ = "0.1.0"
