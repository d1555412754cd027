"""What the project is measured against and checked with: independent, plain implementations."""
