"""Scoring and scheduling of generated programs: the trusted side."""
