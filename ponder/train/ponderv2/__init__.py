"""Training as PonderV2 configs describe it."""
