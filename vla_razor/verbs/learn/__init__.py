"""The verbs that teach a policy, and those that collect or convert what it learns from."""
