"""Scenes to learn from: readers, generators and what they return."""
