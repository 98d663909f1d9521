"""Fine-tune policies, and see how far each moved from its base on the new task."""

__version__ = "0.1.0"
