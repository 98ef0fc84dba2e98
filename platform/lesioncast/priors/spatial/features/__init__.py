"""Features of voxels: older lesions, tissue and FLAIR, all in millimetres."""
