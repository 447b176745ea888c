"""One file per algorithm box that is a different loop."""
