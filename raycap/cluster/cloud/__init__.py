"""Prints files that start clusters in the cloud, and checks such files offline."""
