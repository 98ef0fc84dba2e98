"""Plain settings of the networks and of sampling, without torch."""
