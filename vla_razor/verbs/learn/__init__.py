"""The verbs that teach a policy, and collect what it is taught by."""
