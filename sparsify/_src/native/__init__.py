"""What is compiled, and how it is loaded."""
