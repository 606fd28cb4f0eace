"""Everything about the hardware: meshes, hosts, memory plans, compilation ahead of time."""
