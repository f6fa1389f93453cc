"""Choose a recipe, a data budget or merge weights from short runs."""
