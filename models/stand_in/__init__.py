"""The stand-in language model: its corpus, tokenizer and training."""
