"""The node's shell: sockets, disk, database, clock and processes around the pure pipeline."""

VERSION = "0.1.0"
