"""Processes that run untrusted programs, and the walls around them; imports no other folder."""
