"""The demo: runs the product's own commands as a user would, beside a small archive of its own. Not packaged."""
