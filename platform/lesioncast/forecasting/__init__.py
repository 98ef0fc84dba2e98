"""A patient under every arm: ensembles drawn on Ray, their summary, BIDS files and figures."""
