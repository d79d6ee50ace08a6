"""How well a concept is forgotten, and what it cost: the four prompt sets, published protocols."""
