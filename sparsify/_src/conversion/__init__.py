"""What happens once, at `sparsify()`: which layers become sparse, and how they take the dense ones' places."""
