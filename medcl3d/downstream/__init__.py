"""Fine-tuning, frozen evaluation and prediction with a pretrained encoder."""
