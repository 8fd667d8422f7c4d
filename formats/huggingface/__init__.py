"""Checkpoints of Hugging Face folders: config.json beside safetensors; one file per encoding."""
