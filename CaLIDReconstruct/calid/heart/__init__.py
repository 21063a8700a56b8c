"""What a heart is: segmentation, anatomy, volumes, surfaces, long axes."""
