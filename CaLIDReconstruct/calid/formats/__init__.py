"""Volume files, one module per format: what each header says, vetted before an image library decodes the voxels."""
