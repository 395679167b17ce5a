"""medseg3d in napari: a widget that segments an image layer (``widget``), and images and label maps as files (``files``)."""
