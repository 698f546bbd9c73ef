"""What `sparsify.plot` draws: of a layer, of a training, of results, and films."""
