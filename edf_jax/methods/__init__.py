"""One idea of the papers a file: pure functions of arrays."""
