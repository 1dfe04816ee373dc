"""The embedded world: captioned moving shapes with exact ground truth, and what is trained and measured on it."""
