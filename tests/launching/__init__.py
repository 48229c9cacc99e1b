"""Tests of cdmkit.launching."""
