"""Results of a comparison and the conclusions that they allow."""
