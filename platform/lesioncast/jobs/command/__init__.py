"""Command lines of the jobs: their arguments, and how a job is run and reports errors."""
