"""Tasks, prompts, data sets and the isolated execution of generated programs; never imports jax."""
