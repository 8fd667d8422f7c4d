"""The nouns: tensors, number formats, graphs, models, and their meaning in numpy."""
