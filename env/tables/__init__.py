"""Tables: where they come from, how files are read, and what becomes of columns."""
