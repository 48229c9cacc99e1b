"""Importing published weights: tests of `cdmkit.importing`."""
