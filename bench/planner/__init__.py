"""How long a chunk takes on N GPUs, and how many GPUs a rate of requests needs: reckoned from measured stage costs."""
