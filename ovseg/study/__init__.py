"""Which runs a study has, and what is made of their results: tables, findings, figures, the report."""
