"""The run directory: logs, checkpoints, trackers and the report."""
