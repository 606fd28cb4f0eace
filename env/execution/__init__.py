"""Scheduling and scoring of generated programs: the trusted side of execution."""
