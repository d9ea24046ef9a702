"""What is wrong with the program: detectors that read the inspector's books, and what they need to be told."""
