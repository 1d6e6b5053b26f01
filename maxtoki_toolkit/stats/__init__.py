"""Statistics of cells, donors and genes: arrays in, numbers out; neither AnnData nor a model."""
