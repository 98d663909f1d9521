"""Demonstrations from elsewhere and for elsewhere: LeRobot's and RLDS's formats, and in which units actions speak."""
