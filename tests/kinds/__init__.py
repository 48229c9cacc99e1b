"""Tests of the built-in components."""
