"""What a pre-trained model is used for."""
