"""One loop, and what has to survive it."""
