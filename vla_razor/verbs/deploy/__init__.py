"""The verbs that take a policy to where it works."""
