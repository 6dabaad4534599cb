"""What a corpus holds: documents of text and pictures, and the sources that read them."""
