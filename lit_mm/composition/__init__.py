"""Articles with images: the model writes the text, proposes places for images, captions them, and picks the images."""
