"""The database of the service: forecast jobs, drawn samples and the audit."""
