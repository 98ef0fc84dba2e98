"""Ray: connecting to a cluster, its nodes, work on actors, and metrics of the jobs."""
