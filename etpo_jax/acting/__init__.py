"""Acting: sampling actions, playing episodes with them, and keeping the transitions."""
