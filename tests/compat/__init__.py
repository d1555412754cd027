"""Tests of the modules that carry other libraries' names."""
