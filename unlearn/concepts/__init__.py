"""What is forgotten: concepts, anchors, and the prompts that name them."""
