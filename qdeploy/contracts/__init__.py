"""What a format and a backend must be: typed protocols, the rows that name them, and what they give back."""
