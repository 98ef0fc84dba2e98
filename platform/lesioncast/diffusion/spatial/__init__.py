"""Start the networks from a spatial prior of each patient."""
