"""The parts of scripts/faults.py, the fault campaign."""
