"""From masks to numbers: lesions, ensembles, metrics, baselines, the report and its figure."""
