"""Tasks that the agent solves, and the prompts that state them."""
