"""Studies of matched arms: the same checkpoint trained on variations of the same rows, over seeds, and one verdict."""
