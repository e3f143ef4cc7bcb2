"""How many bits does a transformer store per parameter, and which algorithm does it store them with?"""
