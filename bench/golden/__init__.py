"""Replays recorded cases through the real engine and compares every tensor, score and decision."""
