"""Does test-time scaling help? Methods against each other on the same prompts and seeds, judged by what did not steer them."""
