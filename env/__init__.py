"""Tasks, prompts, tables and the isolated execution of generated programs; never imports jax."""
