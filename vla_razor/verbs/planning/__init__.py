"""`dry_run=true`: what a run would take."""
