"""The core: CT slices in, findings out. No socket, no database, no clock."""
