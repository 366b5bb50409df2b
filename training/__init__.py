"""Offline training and judging; imports the pipeline, and nothing imports it."""
