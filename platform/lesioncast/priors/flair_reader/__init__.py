"""Reader of FLAIR: recognise lesions at bright voxels, and sum them up to a few numbers."""
