"""Numbers for samples: the Inception network's features, Fréchet distances and metrics of feature
matrices."""
