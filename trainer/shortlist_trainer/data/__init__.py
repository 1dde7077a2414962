"""Reading interaction data and dividing it into training and test parts."""
