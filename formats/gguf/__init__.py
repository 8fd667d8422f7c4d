"""GGUF files: reader.py opens them, head.py reads what stands before the tensors, blocks.py has a row per type."""
