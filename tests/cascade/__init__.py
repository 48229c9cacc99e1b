"""Tests of stages, their graph and sampling through it."""
