"""The only code that touches files: opening inside a folder, reading ranges, writing whole or not at all."""
