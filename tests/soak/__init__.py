"""Studies flow through one node for hours: memory, files, threads and database stay flat (decision 0121)."""
