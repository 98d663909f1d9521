"""The verbs that compare many runs (`demo`, `sweep`, `report`, `mnist`), and their parts."""
