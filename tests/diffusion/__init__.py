"""Tests of the diffusion algebra."""
