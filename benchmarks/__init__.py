"""Measurements of the kernels, and the tables made from them."""
