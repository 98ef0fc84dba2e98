"""Where new lesions lie: maps as densities over a brain, and scores that tell a good map."""
