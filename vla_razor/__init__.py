"""Fine-tune policies, and see how far each moved from its base on the new task.

Importing the package registers its tasks with Gymnasium, which has no plug-in discovery of its own any more.
"""

import vla_razor_envs  # noqa: F401

__version__ = "0.1.0"
