"""What a pretrained encoder is for."""
