"""The vocabulary every room shares: plain values in patient millimetres (LPS), arrays in (z, y, x)."""
