"""`dry_run=true`: the memory and the time that a run would take."""
