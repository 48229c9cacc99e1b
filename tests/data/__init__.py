"""Tests of cdmkit.data."""
