"""Meshes, hosts, memory plans and ahead-of-time compilation: everything about the hardware."""
