"""Train both stages on the cases of a store, with checkpoints, and export a bundle."""
