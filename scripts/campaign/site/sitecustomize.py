"""On PYTHONPATH of what the fault campaign starts from the command line: the hook is there before the program is."""

import sys
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
import_module("campaign.hook").install()
sys.path.pop()
