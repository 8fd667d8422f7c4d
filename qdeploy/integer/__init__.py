"""From a network of floats to one of integers: multiplication, addition and shift alone (integerize.py)."""
