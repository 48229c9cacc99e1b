"""Making data sets: tests of `cdmkit.preparing`."""
