"""Measuring trained stages. A metric is a module: it is given stages, networks and images, and knows no recipe."""

METRICS = {"bpd": "bits per dimension of real images: the variational bound, and where on the chain it comes from"}
"""Every metric by name, and what it is."""
