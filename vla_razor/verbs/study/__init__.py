"""The verbs that compare many runs: `demo`, `sweep`, `report` and `mnist`, and what they are made of."""
