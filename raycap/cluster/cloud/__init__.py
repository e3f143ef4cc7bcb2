"""Clusters in the cloud: files that start them, and what is wrong with such a file before it costs anything."""
