"""Forecasts of new multiple-sclerosis lesions under each treatment arm (arXiv 2508.07006)."""
