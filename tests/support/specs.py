"""A valid sweep file."""

GOOD = """\
# What is asked?
name: good
trial:
  profiles: {num_profiles: 100, names: {first: 20, middle: 20, last: 40}}
  model:
    num_layers: 2
    heads: {num_heads: 1}
  training:
    length: {exposures: 5}
    optimizer: {lr: 1e-2}
grid:
  model.hidden_size: [8, 12]
  training.seed: [0, 1, 2]
"""
