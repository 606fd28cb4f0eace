"""Llama-family decoder in Flax Linen, weights, LoRA, tokenizer and partition table."""
