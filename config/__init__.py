"""The settings reference and the training recipes, packaged as data."""
