"""What a tensor is to an engine: one view per tensor, from a closed set. Nothing else walks the trees of tensors."""
