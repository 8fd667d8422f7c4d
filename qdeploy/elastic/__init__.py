"""What fits into a number of bytes: pieces of tensors, the order in which they come, and the loss at every size."""
