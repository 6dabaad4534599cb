"""Articles with images: the model writes, proposes places, captions them and picks an image for each."""
