"""The batch jobs: one module a job, each with `main(argv)`."""
