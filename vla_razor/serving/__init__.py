"""Policies behind a socket: whoever speaks openpi's or vla-eval's protocol gets their decisions."""
