"""Specs of question trials, one per training variant, and the held-out fractions that tests add to them."""

EVERY_KIND = {
    "first_people": 0.1, "people": 0.1, "relations": 0.25, "first_pairs": 0.1, "second_people": 0.1,
    "second_subjects": 0.125, "second_pairs": 0.1, "tuples": 0.1,
}  # fmt: skip

PEOPLE = {"num_profiles": 40, "num_relations": 4, "names": {"first": 8, "middle": 8, "last": 8}}

ARMS = {
    "latent": {"questions": {"hops": [1, 2], "one_hop_share": 0.2}},
    "chain_of_thought": {"questions": {"hops": [1, 2], "chain_of_thought": True}},
    "three_hops": {"questions": {"hops": [1, 2, 3], "weights": [1, 1, 4]}},
    "three_hops_spelled": {"questions": {"hops": [2, 3], "weights": [1, 4], "chain_of_thought": True}},
    "bipartite": {"questions": {"hops": [1, 2]}, "profiles": {"structure": "bipartite"}},
    "curriculum": {
        "questions": {"hops": [1, 2]},
        "training": {
            "curriculum": [{"weights": [1, 0], "until": {"steps": 5}}, {"weights": [0, 1], "until": {"steps": 20}}]
        },
    },
}
