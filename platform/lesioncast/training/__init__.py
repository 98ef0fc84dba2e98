"""Both stages of training: the store's cases in, checkpoints and finally a bundle out."""
