"""Many servers behind one address: replicas that share a folder, and the front that knows which has a video."""
