"""Documents of text and pictures, and the sources that read them."""
