"""The forecast worker: it runs the jobs of the database."""
