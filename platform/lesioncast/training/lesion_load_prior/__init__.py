"""Fit the prior of the lesion load, and the reader of FLAIR that it may have."""
