"""What is kept on disk and found again: whole files, records, settings of a folder, derived folders, identities."""
