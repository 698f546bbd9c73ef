"""Private: what users import is in `sparsify`, `sparsify.evolution`, `sparsify.interchange` and `sparsify.kernels`."""
