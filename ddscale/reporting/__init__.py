"""What a person looks at: progress, tables, plots and the HTML report. Imported by entry points alone."""
