"""What happens at each step: the wrapped optimizer, evolution on schedule, and all that moves with a topology."""
